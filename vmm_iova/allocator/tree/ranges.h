/* SPDX-License-Identifier: Apache-2.0
 *
 * A tree and the usable ranges: trees over them, the allocations outside of them, what is free in
 * them, and what a refusal tells. Part of plain.c.
 */
/* Walks entries upward: begins with the last that starts at x or below. */
typedef struct {
	iova_path path;
	uint32_t i;
	int more;
} iova_cursor;

static void iova_walk(const iova_tree *t, uint64_t x, iova_cursor *c)
{
	path_down(t, &c->path, x);
	c->i = leaf_seek(c->path.leaf, x);
	c->more = 1;
	/* At a seam, or at 0, the entry of no length comes first. */
	if (c->i && leaf_start(c->path.leaf, c->i - 1) == leaf_start(c->path.leaf, c->i))
		c->i--;
}

/* Give the entry and the gap above it (gap_first > gap_last: none); 0 when there are no more. */
static int iova_next(const iova_tree *t, iova_cursor *c, iova_entry *entry, uint64_t *gap_first,
		     uint64_t *gap_last)
{
	const iova_leaf *l = c->path.leaf;

	if (!c->more)
		return 0;
	entry->start = leaf_start(l, c->i);
	entry->len = leaf_stop(l, c->i) - entry->start;
	entry->fixed = (int)(l->fixed >> c->i & 1);
	*gap_first = leaf_stop(l, c->i);
	*gap_last = leaf_next(l, c->i) - 1;
	if (!leaf_gap(l, c->i)) {
		*gap_first = 1;
		*gap_last = 0;
	}
	if (++c->i == l->count) {
		c->i = 0;
		c->more = path_step(t, &c->path, 1);
	}
	return 1;
}

/* Make a tree over usable ranges that are ascending, with the allocations of another tree, or of none.
 * They must lie inside of the ranges. With spare_zero, unit 0 is not chosen where it is usable.
 */
iova_tree *iova_tree_over(const iova_span *usable, size_t count, uint64_t top, int spare_zero,
				 const iova_tree *from, size_t held)
{
	int keep_zero = spare_zero && count && usable[0].first == 0;
	iova_entry *e = malloc((count + held + 2) * sizeof *e);
	size_t n = 0, i = 0;
	uint64_t above = 0; /* where the range before stops */
	iova_tree *t = NULL;
	iova_cursor c;
	iova_entry own = { 0, 0, 1 };
	uint64_t gap_first, gap_last;
	int more = from != NULL;

	if (!e)
		return NULL;
	if (more)
		iova_walk(from, 0, &c);
	do { /* what no range has below range i, then what is owned in range i */
		uint64_t next = i < count ? usable[i].first : top;

		if (!count && !top) {
			/* No length says all 2^64 units. */
			e[n++] = (iova_entry){ 0, (uint64_t)1 << 63, 1 };
			above = (uint64_t)1 << 63;
		}
		if (i < count || next != above)
			e[n++] = (iova_entry){ above, i < count && !next ? (uint64_t)keep_zero : next - above, 1 };
		if (i == count)
			break;
		for (;;) {
			while (more && own.fixed)
				more = iova_next(from, &c, &own, &gap_first, &gap_last);
			if (!more || own.start > usable[i].last)
				break;
			if (own.start == 0 && keep_zero)
				n--;
			e[n++] = own;
			own.fixed = 1;
		}
		above = usable[i].last + 1;
	} while (i++ < count);
	t = iova_tree_new(e, n, top, keep_zero);
	free(e);
	return t;
}

/* Write the allocations that do not lie inside one of the ranges, as many as there is room for, and
 * return how many there are.
 */
size_t iova_outside(const iova_tree *t, const iova_span *ranges, size_t count, iova_entry *out,
			   size_t room)
{
	uint64_t gap_first, gap_last;
	size_t n = 0, i = 0;
	iova_entry own;
	iova_cursor c;

	iova_walk(t, 0, &c);
	while (iova_next(t, &c, &own, &gap_first, &gap_last)) {
		if (own.fixed)
			continue;
		while (i < count && ranges[i].last < own.start)
			i++;
		if (i < count && ranges[i].first <= own.start &&
		    own.start + (own.len - 1) <= ranges[i].last)
			continue;
		if (n < room)
			out[n] = own;
		n++;
	}
	return n;
}

/* Write what no allocation has of the ranges in units [low, high], cut to it, as many as there is room
 * for, and return how many there are. What is parked, and unit 0, count as free.
 */
size_t iova_free_spans(const iova_tree *t, const iova_span *ranges, size_t count, uint64_t low,
			      uint64_t high, iova_span *out, size_t room)
{
	uint64_t gap_first, gap_last;
	size_t n = 0, i = 0;
	iova_entry own = { 0, 0, 1 };
	iova_cursor c;
	int more = 1;

	iova_walk(t, low, &c);
	while (i < count && ranges[i].last < low)
		i++;
	for (; i < count && ranges[i].first <= high; i++) {
		uint64_t first = ranges[i].first > low ? ranges[i].first : low;
		uint64_t last = ranges[i].last < high ? ranges[i].last : high;
		int open = 1; /* first is inside, and free as far as is known */

		for (;;) {
			while (more && (own.fixed || own.start + (own.len - 1) < first))
				more = iova_next(t, &c, &own, &gap_first, &gap_last);
			if (!more || own.start > last)
				break;
			if (own.start > first) {
				if (n < room)
					out[n] = (iova_span){ first, own.start - 1 };
				n++;
			}
			if (own.start + (own.len - 1) >= last) {
				open = 0;
				break;
			}
			first = own.start + own.len;
			own.fixed = 1;
		}
		if (open) {
			if (n < room)
				out[n] = (iova_span){ first, last };
			n++;
		}
	}
	return n;
}

/* The lowest allocation that has a unit of [low, high], if there is one. */
int iova_overlap(const iova_tree *t, uint64_t low, uint64_t high, iova_entry *own)
{
	uint64_t gap_first, gap_last;
	iova_cursor c;

	iova_walk(t, low, &c);
	while (iova_next(t, &c, own, &gap_first, &gap_last) && own->start <= high)
		if (!own->fixed && own->start + (own->len - 1) >= low)
			return 1;
	return 0;
}

static uint64_t facts_of(const iova_leaf *l, const iova_tree *t, int k, uint32_t from, uint32_t below)
{
	uint64_t all = 0;

	for (uint32_t i = from; i < below; i++) {
		uint64_t one = k == IOVA_SUM ? leaf_gap(l, i) : leaf_usable(l, i, t->mask[k]);

		all = k == IOVA_SUM ? all + one : one > all ? one : all;
	}
	return all;
}

/* The largest, or the sum, over the gaps strictly between two entries. */
static uint64_t facts_between(const iova_tree *t, const iova_path *a, uint32_t i,
			      const iova_path *b, uint32_t j, int k)
{
	uint64_t all, one;

	if (a->leaf == b->leaf)
		return facts_of(a->leaf, t, k, i + 1, j);
	all = facts_of(a->leaf, t, k, i + 1, a->leaf->count);
	one = facts_of(b->leaf, t, k, 0, j);
	all = k == IOVA_SUM ? all + one : one > all ? one : all;
	for (int level = 1; level <= t->height; level++) {
		const iova_inner *n = a->node[level];
		int same = n == b->node[level];
		uint32_t below = same ? b->at[level] : n->count;

		for (int side = 0; side < 2; side++) {
			for (uint32_t c = side ? 0 : a->at[level] + 1; c < below; c++) {
				one = inner_number(n, k, c);
				all = k == IOVA_SUM ? all + one : one > all ? one : all;
			}
			if (same)
				return all;
			n = b->node[level];
			below = b->at[level];
		}
	}
	return all;
}

static void facts_take(iova_facts *f, uint64_t first, uint64_t last)
{
	if (!f->any || last - first > f->last - f->first) {
		f->first = first;
		f->last = last;
	}
	f->any = 1;
}

/* Take in the gap above entry i, cut to the window. */
static void facts_edge(iova_facts *f, const iova_leaf *l, uint32_t i, uint64_t mask, uint64_t low,
		       uint64_t high, int zero)
{
	uint64_t first = leaf_stop(l, i), last = leaf_next(l, i) - 1, fits;

	if (!leaf_gap(l, i))
		return;
	first = first < low ? low : first;
	last = last > high ? high : last;
	if (first > last)
		return;
	fits = usable(first, last - first + 1, mask);
	f->aligned = fits > f->aligned ? fits : f->aligned;
	f->total += last - first + 1;
	facts_take(f, zero ? 0 : first, last);
}

static int tree_sums(iova_tree *t)
{
	if (!pool_reserve(t, &t->blocks, 2 * inners_count(t->root, t->height)))
		return 0;
	plane_build(t, t->root, t->height, IOVA_SUM);
	t->sums = 1;
	t->upkeep = 1;
	return 1;
}

/* Gather the facts of [low, high] at the alignment 1 << shift. Nothing may be parked. */
int iova_tell(iova_tree *t, int shift, uint64_t low, uint64_t high, iova_facts *f)
{
	uint64_t mask = ((uint64_t)1 << shift) - 1, most, place = 0;
	iova_path a, b;
	uint32_t i, j;
	int zero, k = 0;

	if (shift && !t->class_of[shift] && !tree_class(t, shift))
		return IOVA_NOMEM;
	if (!t->sums && !tree_sums(t))
		return IOVA_NOMEM;
	memset(&a, 0, sizeof a);
	memset(&b, 0, sizeof b);
	path_down(t, &a, low);
	path_down(t, &b, high);
	i = leaf_seek(a.leaf, low);
	j = leaf_seek(b.leaf, high);
	memset(f, 0, sizeof *f);
	/* Unit 0 is free although it is not chosen; so is the gap above, unless a seam is between. */
	zero = low == 0 && t->keep_zero && (a.leaf->fixed & 1);
	if (zero) {
		facts_take(f, 0, 0);
		f->total = 1;
		i = 0;
	}
	facts_edge(f, a.leaf, i, mask, low, high, zero);
	if (a.leaf == b.leaf && i == j)
		return IOVA_OK;
	most = facts_between(t, &a, i, &b, j, 0);
	if (most >= IOVA_FAR) {
		if (!t->class_of[0] && !tree_class(t, 0))
			return IOVA_NOMEM;
		k = t->class_of[0];
		most = facts_between(t, &a, i, &b, j, k);
	}
	if (most) {
		uint64_t fits = shift ? facts_between(t, &a, i, &b, j, t->class_of[shift]) : most;
		iova_path p;
		uint32_t at;

		f->aligned = fits > f->aligned ? fits : f->aligned;
		f->total += facts_between(t, &a, i, &b, j, IOVA_SUM);
		choose_first(t, &p, &at, most, k, leaf_next(a.leaf, i), high, &place);
		facts_take(f, place, place + (most - 1));
	}
	facts_edge(f, b.leaf, j, mask, low, high, 0);
	return IOVA_OK;
}
