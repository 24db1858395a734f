/* SPDX-License-Identifier: Apache-2.0
 *
 * Best fit: the smallest gap that fits, and of those of one size the lowest. Part of code.h.
 */
/* The best so far, as the window cuts it. */
typedef struct {
	iova_gap gap;
	uint64_t place;
	int found;
} iova_best;

IOVA_INLINE void best_take(iova_best *b, uint64_t start, uint64_t size, uint64_t place)
{
	if (b->found && (size > b->gap.size || (size == b->gap.size && start >= b->gap.start)))
		return;
	*b = (iova_best){ { start, size }, place, 1 };
}

/* Take the gap above entry i, cut to the window, which has `place`; return where it stops. */
IOVA_INLINE uint64_t best_take_cut(iova_best *b, const iova_leaf *l, uint32_t i, uint64_t low,
				   uint64_t high, uint64_t place)
{
	uint64_t first = leaf_stop(l, i), last = leaf_next(l, i) - 1;

	first = first < low ? low : first;
	last = last > high ? high : last;
	best_take(b, first, last - first + 1, place);
	return last;
}

/* The gaps that an edge of the window cuts have another size there than the order by size says. */
static void best_of_edges(const iova_tree *t, iova_best *b, uint64_t need, uint64_t mask, uint64_t low,
			  uint64_t high)
{
	uint64_t edges[2] = { low, high }, place;
	iova_path p;

	for (int e = 0; e < 2; e++) {
		uint32_t i;

		path_down(t, &p, edges[e]);
		i = leaf_seek(p.leaf, edges[e]);
		if (gap_place(p.leaf, i, need, mask, low, high, &place))
			best_take_cut(b, p.leaf, i, low, high, place);
	}
}

/* Sizes, and gaps of the window by address, are looked at in turns, so the cost is that of the shorter
 * of both lists. 0: neither was done after so many turns. Few turns are enough for most windows.
 */
static int best_in_turns(const iova_tree *t, iova_best *b, uint64_t need, int k, uint64_t low,
			 uint64_t high, uint64_t turns)
{
	uint64_t mask = t->mask[k], size = need, start = 0, from = low, at;
	iova_path p;
	uint32_t i;

	while (sizes_next(t, mask ? k : 0, need, &size, &start)) {
		if (b->found &&
		    (size > b->gap.size || (size == b->gap.size && start >= b->gap.start)))
			return 1;
		if (start >= low && start <= high && size - 1 <= high - start) {
			best_take(b, start, size, (start + mask) & ~mask);
			return 1;
		}
		/* On to where the next that counts may be: many gaps of one size are one step. */
		if (start < low)
			start = low;
		else if (start <= high)
			start++;
		else if (++size == 0)
			return 1;
		else
			start = 0;
		/* In turn: one of the window's gaps. */
		if (from > high || !choose_first(t, &p, &i, need, k, from, high, &at))
			return 1;
		from = best_take_cut(b, p.leaf, i, low, high, at) + 1;
		if (from == 0)
			return 1;
		if (turns-- == 0)
			return 0;
	}
	return 1;
}

static void best_of_zone(iova_tree *t, iova_best *b, iova_zone *z, uint64_t need, int k,
			 uint64_t low, uint64_t last);

/* The best of the gaps that start in [low, last], which is a part of slot i of a zone. */
static void best_of_slot(iova_tree *t, iova_best *b, iova_zone *z, uint32_t i, uint64_t need, int k,
			 uint64_t low, uint64_t last)
{
	iova_zone *part = z->slot[i];
	uint64_t from = low, place;
	iova_path p;
	uint32_t entry;

	for (int looked = 0; !part; looked++) {
		if (from > last || !choose_first(t, &p, &entry, need, k, from, ~(uint64_t)0, &place))
			return;
		from = leaf_next(p.leaf, entry);
		place = leaf_stop(p.leaf, entry);
		if (place > last)
			return;
		if (place >= low)
			best_take(b, place, from - place, (place + t->mask[k]) & ~t->mask[k]);
		if (from == 0)
			return;
		if (looked == ZONE_MANY)
			part = zone_make(t, z, i);
	}
	/* The slot has no gaps outside of its zone. */
	low = low > part->low ? low : part->low;
	last = last < part->last ? last : part->last;
	if (last >= low)
		best_of_zone(t, b, part, need, k, low, last);
}

/* The best of the gaps of a zone that start in [low, last], which the zone has. */
static void best_of_zone(iova_tree *t, iova_best *b, iova_zone *z, uint64_t need, int k,
			 uint64_t low, uint64_t last)
{
	uint64_t size = need, start = 0, mask = t->mask[k];
	uint32_t i = (uint32_t)((low - z->low) >> z->shift);
	uint32_t j = (uint32_t)((last - z->low) >> z->shift);
	/* Slots that lie in it wholly, from i + cut_low on and up to j - cut_last. */
	uint32_t cut_low = low != slot_low(z, i), cut_last = last != slot_last(z, j);
	uint64_t slots = ~(uint64_t)0 << i & ~(uint64_t)0 >> (63 - j);
	iova_gaps_path p;

	slots &= ~((uint64_t)cut_low << i) & ~((uint64_t)cut_last << j);
	if (!mask) {
		if (slots && zone_next(t, z, &p, 0, need, slots, &size, &start) >= 0)
			best_take(b, start, size, start);
	} else if (!(zone_slots(t, z) & ~slots)) {
		if (zone_next(t, z, &p, k, need, ~(uint64_t)0, &size, &start) >= 0)
			best_take(b, start, size, (start + mask) & ~mask);
	} else {
		/* No node tells of slot and alignment together: each slot by itself. */
		for (uint64_t rest = slots & zone_slots(t, z); rest; rest &= rest - 1) {
			uint32_t s = (uint32_t)__builtin_ctzll(rest);

			best_of_slot(t, b, z, s, need, k, slot_low(z, s), slot_last(z, s));
		}
	}
	if (i == j) {
		if (!slots)
			best_of_slot(t, b, z, i, need, k, low, last);
		return;
	}
	if (cut_low)
		best_of_slot(t, b, z, i, need, k, low, slot_last(z, i));
	if (cut_last)
		best_of_slot(t, b, z, j, need, k, slot_low(z, j), last);
}

/* The best of the gaps that lie in the window whole. */
static void best_whole(iova_tree *t, iova_best *b, uint64_t need, int k, uint64_t low,
		       uint64_t high)
{
	iova_path p;
	uint32_t i;

	/* A gap that `high` cuts is the last that starts in it. */
	path_down(t, &p, high);
	i = leaf_seek(p.leaf, high);
	if (leaf_gap(p.leaf, i) && leaf_stop(p.leaf, i) <= high) {
		if (leaf_stop(p.leaf, i) <= low)
			return;
		high = leaf_stop(p.leaf, i) - 1;
	}
	best_of_zone(t, b, &t->sizes->all, need, k, low, high);
}

/* Begin to keep the slots of all gaps. */
IOVA_RARE int zones_begin(iova_tree *t)
{
	iova_zone *z = &t->sizes->all;

	if (!pool_reserve(t, &t->blocks, 2 * gaps_count(z->root, z->height)))
		return 0;
	gaps_build(t, z, z->root, z->height, 0);
	z->masked = 1;
	return 1;
}

static int choose_best(iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k, uint64_t low,
		       uint64_t high, uint64_t *place)
{
	uint64_t mask = t->mask[k], size = need, start = 0;
	iova_best b = { { 0, 0 }, 0, 0 };

	if (low == 0 && high == t->top - 1) {
		if (!sizes_next(t, mask ? k : 0, need, &size, &start))
			return 0;
		best_take(&b, start, size, (start + mask) & ~mask);
	} else {
		best_of_edges(t, &b, need, mask, low, high);
		if (!best_in_turns(t, &b, need, k, low, high, ZONE_MANY)) {
			if (t->sizes->all.masked || zones_begin(t))
				best_whole(t, &b, need, k, low, high);
			else
				best_in_turns(t, &b, need, k, low, high, ~(uint64_t)0);
		}
	}
	if (!b.found)
		return 0;
	path_down(t, p, b.place);
	*entry = leaf_seek(p->leaf, b.place);
	*place = b.place;
	return 1;
}
