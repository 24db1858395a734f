/* SPDX-License-Identifier: Apache-2.0
 *
 * Zones: the gaps by size once more, for parts of the space. Best fit in a window searches them, and
 * they are what makes it logarithmic. Part of code.h.
 *
 * A zone has the gaps that start in its part of the space, by size and start; its part is cut into 64
 * slots, and its nodes keep for each child in which slots its gaps start. So the smallest gap that fits
 * in slots that lie wholly in a window is one way down. An edge of the window lies in one slot more,
 * of which the same is asked: it is a zone of its own if so many gaps are in it that to look at them
 * one by one would take longer. A slot has a 64th of its zone at most, so that there are 9 zones at
 * most on the way to an edge with pages of 4 KiB, and 11 with bytes. With an alignment no node can
 * tell of both: so each slot is asked by itself.
 *
 * Zones are made where an edge of a window needs them, in one pass over the gaps of the slot, and then
 * kept. Nothing depends on them: when there is no memory for one, all are given back.
 */
enum {
	ZONE_MANY = 16, /* gaps that are looked at one by one before a zone is made */
	ZONE_FEW = 4 /* a zone with fewer is given back */
};

_Static_assert(sizeof(iova_zone) <= sizeof(iova_leaf), "a zone lies in a block");

/* Whether gaps that start here are in the zone. */
IOVA_INLINE int zone_holds(const iova_zone *z, uint64_t start)
{
	return start >= z->low && start <= z->last;
}

/* Where slot i begins, and where it ends. */
IOVA_INLINE uint64_t slot_low(const iova_zone *z, uint32_t i)
{
	return z->low + ((uint64_t)i << z->shift);
}

IOVA_INLINE uint64_t slot_last(const iova_zone *z, uint32_t i)
{
	uint64_t low = slot_low(z, i), inside = ((uint64_t)1 << z->shift) - 1;

	return z->last - low < inside ? z->last : low + inside;
}

/* The slots that have gaps. */
static uint64_t zone_slots(const iova_tree *t, const iova_zone *z)
{
	return gaps_number(t, z, z->height, z->root, 0);
}

static void zone_free(iova_tree *t, iova_zone *z)
{
	for (int i = 0; i < 64; i++)
		if (z->slot[i])
			zone_free(t, z->slot[i]);
	gaps_clear(t, z, z->height, z->root);
	pool_give(&t->blocks, z);
}

static void zones_free(iova_tree *t)
{
	for (int i = 0; i < 64; i++)
		if (t->sizes->all.slot[i])
			zone_free(t, t->sizes->all.slot[i]);
	memset(t->sizes->all.slot, 0, sizeof t->sizes->all.slot);
}

/* Put a gap into a zone if there is memory. */
static int zone_try(iova_tree *t, iova_zone *z, uint64_t start, uint64_t size)
{
	size_t nodes = (size_t)z->height + 2;

	if (!pool_reserve(t, &t->sizes->inners, nodes) ||
	    !pool_reserve(t, &t->blocks, nodes * ((size_t)z->classes + 2)))
		return 0;
	zone_add(t, z, start, size);
	return 1;
}

/* A gap has come, or is gone. */
static void zones_add(iova_tree *t, iova_gap gap)
{
	iova_zone *z = &t->sizes->all, **at;

	while (*(at = z->slot + ((gap.start - z->low) >> z->shift))) {
		z = *at;
		if (!zone_holds(z, gap.start)) {
			/* It was made for less: it is made again when it is next needed. */
			*at = NULL;
			zone_free(t, z);
			return;
		}
		if (!zone_try(t, z, gap.start, gap.size)) {
			zones_free(t);
			return;
		}
	}
}

static void zones_drop(iova_tree *t, iova_gap gap)
{
	iova_zone *z = &t->sizes->all, **at;
	iova_gaps_path p;

	while (*(at = z->slot + ((gap.start - z->low) >> z->shift))) {
		z = *at;
		zone_drop(t, z, &p, -1, gap.start, gap.size);
		if (z->count < ZONE_FEW) {
			*at = NULL;
			zone_free(t, z);
			return;
		}
	}
}

/* Up to two gaps are gone, and up to two have come; those of no size do not count.
 * PERF: no loop over an array: it is read wider than it was just written, which waits.
 */
IOVA_INLINE void sizes_change(iova_tree *t, iova_gap gone, iova_gap gone_too, iova_gap come,
			      iova_gap come_too)
{
	iova_sizes *s = t->sizes;

	if (gone.size) {
		zone_drop(t, &s->all, &s->found, s->found_at, gone.start, gone.size);
		s->found_at = -1;
	}
	if (gone_too.size)
		zone_drop(t, &s->all, &s->found, -1, gone_too.start, gone_too.size);
	s->found_at = -1;
	if (come.size)
		zone_add(t, &s->all, come.start, come.size);
	if (come_too.size)
		zone_add(t, &s->all, come_too.start, come_too.size);
	/* Last, for what was reserved is not for them. */
	if (__builtin_expect(s->all.masked, 0)) {
		if (gone.size)
			zones_drop(t, gone);
		if (gone_too.size)
			zones_drop(t, gone_too);
		if (come.size)
			zones_add(t, come);
		if (come_too.size)
			zones_add(t, come_too);
	}
}

static void sizes_free(iova_tree *t)
{
	if (t->sizes) {
		zones_free(t);
		gaps_clear(t, &t->sizes->all, t->sizes->all.height, t->sizes->all.root);
		pool_clear(&t->sizes->inners);
		free(t->sizes);
		t->sizes = NULL;
	}
}

/* Begin to keep the gaps by size. */
IOVA_RARE int sizes_build(iova_tree *t)
{
	iova_zone *z;
	iova_path p;

	if (!pool_reserve(t, &t->blocks, 4))
		return 0;
	t->sizes = calloc(1, sizeof *t->sizes);
	if (!t->sizes)
		return 0;
	t->upkeep = 1;
	t->sizes->inners.size = (sizeof(iova_gaps) + 63) / 64 * 64;
	t->sizes->found_at = -1;
	z = &t->sizes->all;
	z->classes = t->classes;
	z->last = t->top - 1;
	/* As many units to a slot as 64 of them need for all of the space. */
	while (z->last >> z->shift > 63)
		z->shift++;
	z->root = gaps_take(t, z, 0);
	gaps_fill(z->root);
	path_down(t, &p, 0);
	do {
		for (uint32_t i = 0; i < p.leaf->count; i++) {
			uint64_t gap = leaf_gap(p.leaf, i);

			if (!gap)
				continue;
			if (!sizes_ready(t)) {
				sizes_free(t);
				return 0;
			}
			zone_add(t, z, leaf_stop(p.leaf, i), gap);
		}
	} while (path_step(t, &p, 1));
	return 1;
}

/* Go through the gaps that start in [low, last], and put them into a zone if there is one; else tell
 * where the first and the last of them start. 0: there is no memory.
 */
static int zone_walk(iova_tree *t, uint64_t low, uint64_t last, iova_zone *z, uint64_t *ends)
{
	iova_path p;
	int any = 0;

	path_down(t, &p, low);
	do {
		for (uint32_t i = 0; i < p.leaf->count; i++) {
			uint64_t start = leaf_stop(p.leaf, i), gap = leaf_gap(p.leaf, i);

			if (!gap || start < low)
				continue;
			if (start > last)
				return 1;
			if (z && !zone_try(t, z, start, gap))
				return 0;
			ends[any] = ends[1] = start;
			any = 1;
		}
	} while (path_step(t, &p, 1));
	return 1;
}

/* Make a zone of slot i of a zone. It has the part of the slot in which there are gaps now. */
IOVA_RARE iova_zone *zone_make(iova_tree *t, iova_zone *up, uint32_t i)
{
	uint64_t low = slot_low(up, i), last = slot_last(up, i), ends[2] = { low, low };
	iova_zone *z;

	if (!pool_reserve(t, &t->blocks, 2))
		return NULL;
	zone_walk(t, low, last, NULL, ends);
	z = pool_take(&t->blocks);
	memset(z, 0, sizeof *z);
	z->classes = t->classes;
	z->masked = 1;
	z->low = ends[0];
	while ((ends[1] - ends[0]) >> z->shift > 63)
		z->shift++;
	z->last = last;
	if ((last - z->low) >> z->shift > 63)
		z->last = z->low + ((uint64_t)64 << z->shift) - 1;
	z->root = gaps_take(t, z, 0);
	gaps_fill(z->root);
	if (!zone_walk(t, low, last, z, ends)) {
		zone_free(t, z);
		return NULL;
	}
	return up->slot[i] = z;
}
