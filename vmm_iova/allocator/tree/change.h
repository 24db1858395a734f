/* SPDX-License-Identifier: Apache-2.0
 *
 * Planes that come to be, and how an entry is put in and taken out. Part of code.h.
 */
/* --- planes that come to be when they are first needed --- */

static size_t inners_count(const iova_inner *n, int level)
{
	size_t number = 1;

	for (uint32_t i = 0; level > 1 && i < n->count; i++)
		number += inners_count(n->child[i], level - 1);
	return number;
}

static void plane_build(iova_tree *t, iova_inner *n, int level, int k)
{
	iova_plane *plane;

	if (!n->more)
		inner_more(t, n);
	plane = n->more[k] = pool_take(&t->blocks);
	memset(plane, 0, sizeof *plane);
	for (uint32_t i = 0; i < n->count; i++) {
		if (level > 1)
			plane_build(t, n->child[i], level - 1, k);
		plane->at[i] = child_number(t, level, n->child[i], k);
	}
	for (int g = 0; g < 8; g++)
		plane->top[g] = max8(plane->at + 8 * g);
}

IOVA_RARE int tree_class(iova_tree *t, int shift)
{
	size_t nodes = inners_count(t->root, t->height);
	int k = t->classes;

	if (t->sizes)
		nodes += gaps_count(t->sizes->all.root, t->sizes->all.height);
	if (!pool_reserve(t, &t->blocks, 2 * nodes))
		return 0;
	t->mask[k] = ((uint64_t)1 << shift) - 1;
	plane_build(t, t->root, t->height, k);
	if (t->sizes) {
		zones_free(t); /* what is made again has the plane */
		gaps_build(t, &t->sizes->all, t->sizes->all.root, t->sizes->all.height, k);
		t->sizes->all.classes++;
	}
	t->class_of[shift] = (uint8_t)k;
	t->classes++;
	t->upkeep = 1;
	return 1;
}

/* --- changes --- */

/* An entry too far from the base of the leaf below it: a leaf of its own. */
IOVA_RARE int tree_put_far(iova_tree *t, uint64_t start, uint64_t len)
{
	iova_entry e = { start, len, 0 };
	iova_leaf *a, *b;
	iova_path p;
	uint64_t stop, gap;

	if (!shape_room(t, start))
		return IOVA_NOMEM;
	path_down(t, &p, start);
	a = p.leaf;
	stop = a->tail;
	gap = leaf_gap(a, a->count - 1);
	b = pool_take(&t->blocks);
	leaf_write(b, &e, 1, a->above);
	leaf_set_above(a, start);
	shape_add(t, p.node[1], 1, p.at[1] + 1, b);
	path_refresh(t, &p);
	path_down(t, &p, start);
	path_refresh(t, &p);
	if (t->sizes)
		sizes_change(t, (iova_gap){ stop, gap }, (iova_gap){ 0, 0 },
			     (iova_gap){ stop, start - stop },
			     (iova_gap){ start + len, leaf_gap(b, 0) });
	return IOVA_OK;
}

/* Make room in the full leaf of the path, and go to entry i below start again. */
IOVA_RARE int tree_make_room(iova_tree *t, iova_path *p, uint64_t start, uint32_t *i)
{
	if (!shape_split(t, p, start))
		return 0;
	path_down(t, p, start);
	*i = leaf_seek(p->leaf, start);
	return 1;
}

/* Upkeep of what not every tree has: an entry has come into the gap from `stop` to `above`, or has gone
 * from it. PERF: six arguments, for which there are registers.
 */
static __attribute__((noinline)) void tree_lose(iova_tree *t, const iova_path *p, uint64_t stop,
						uint64_t above, uint64_t start, uint64_t len)
{
	iova_gap gap = { stop, above - stop - (above == stop) }; /* or all 2^64 units */

	for (int k = 1; k < t->classes; k++) {
		uint64_t mask = t->mask[k];

		if (usable(gap.start, gap.size, mask) == p->node[1]->more[k]->at[p->at[1]])
			path_lower(t, p, k, leaf_max(p->leaf, mask));
	}
	if (t->sums)
		path_add(t, p, 0 - len);
	if (t->sizes)
		sizes_change(t, gap, (iova_gap){ 0, 0 }, (iova_gap){ stop, start - stop },
			     (iova_gap){ start + len, above - (start + len) });
}

static __attribute__((noinline)) void tree_gain(iova_tree *t, const iova_path *p, uint64_t stop,
						uint64_t above, uint64_t start, uint64_t len)
{
	iova_gap gap = { stop, above - stop - (above == stop) };

	for (int k = 1; k < t->classes; k++)
		path_raise(t, p, k, usable(gap.start, gap.size, t->mask[k]));
	if (t->sums)
		path_add(t, p, len);
	if (t->sizes)
		sizes_change(t, (iova_gap){ stop, start - stop },
			     (iova_gap){ start + len, above - (start + len) }, gap,
			     (iova_gap){ 0, 0 });
}

/* Put an entry into the gap above entry i of the path's leaf. */
IOVA_INLINE int tree_put(iova_tree *t, iova_path *p, uint32_t i, uint64_t start, uint64_t len)
{
	iova_leaf *l = p->leaf;
	uint64_t stop, above, most;
	int upkeep = __builtin_expect(t->upkeep, 0);

	if (upkeep && t->sizes && !sizes_ready(t))
		return IOVA_NOMEM;
	if (__builtin_expect(start - l->base >= IOVA_FAR, 0))
		return tree_put_far(t, start, len);
	if (__builtin_expect(l->count == IOVA_LANES, 0)) {
		if (!tree_make_room(t, p, start, &i))
			return IOVA_NOMEM;
		l = p->leaf;
	}
	stop = leaf_stop(l, i);
	above = leaf_next(l, i);
	most = (uint64_t)lanes_open(l, i, (int32_t)(start - l->base),
				    len < IOVA_FAR ? near(start + len - l->base) : IOVA_FAR);
	leaf_set_lines(l);
	l->tail = either(i + 1 == l->count, start + len, l->tail);
	l->fixed += l->fixed & (0 - ((uint64_t)2 << i)); /* one up, those above entry i */
	l->count++;
	most = larger_of(most, larger_of(start - stop, above - (start + len)));
	path_lower(t, p, 0, larger_of(most, l->above - l->tail));
	if (upkeep)
		tree_lose(t, p, stop, above, start, len);
	return IOVA_OK;
}

/* Give the entry at 0 another length. */
IOVA_RARE int tree_set_zero(iova_tree *t, uint64_t len, int fixed)
{
	iova_path p;
	iova_leaf *l;
	uint64_t stop, gap;

	if (t->sizes && !sizes_ready(t))
		sizes_free(t);
	path_down(t, &p, 0);
	while (path_step(t, &p, -1))
		;
	l = p.leaf;
	stop = leaf_stop(l, 0);
	gap = leaf_gap(l, 0);
	l->fixed = (l->fixed & ~(uint64_t)1) | (fixed != 0);
	if (l->count == 1)
		leaf_set_tail(l, len);
	else
		l->stop[0] = (int32_t)len;
	path_refresh(t, &p);
	if (t->sizes)
		sizes_change(t, (iova_gap){ stop, gap }, (iova_gap){ 0, 0 },
			     (iova_gap){ len, leaf_gap(l, 0) }, (iova_gap){ 0, 0 });
	return IOVA_OK;
}

/* Give the leaves around the path's one leaf less, if they can do with that. */
IOVA_RARE void tree_join(iova_tree *t, iova_path *p)
{
	iova_inner *n = p->node[1];
	uint32_t left, leaves, entries;
	iova_run r;

	left = run_around(n, p->at[1], &leaves, &entries);
	if (entries > (leaves - 1) * IOVA_JOIN || !run_take(&r, n, left, leaves))
		return;
	leaves--;
	run_deal(t, &r, n, left, leaves, r.count / leaves);
	pool_give(&t->blocks, n->child[left + leaves]);
	p->at[1] = left + leaves;
	shape_drop(t, p, 1);
}

/* Take out entry 0 of a leaf that is not the first: its space goes to the leaf before. */
IOVA_RARE void tree_cut_first(iova_tree *t, iova_path *p)
{
	iova_leaf *l = p->leaf, *a;
	iova_path q = *p;
	uint64_t stop, gap, mine_stop = leaf_stop(l, 0), mine = leaf_gap(l, 0);

	path_step(t, &q, -1);
	a = q.leaf;
	stop = a->tail;
	gap = leaf_gap(a, a->count - 1);
	if (l->count > 1) {
		leaf_cut_first(l);
		path_set_key(t, p, 1, key_of(l->base));
		leaf_set_above(a, l->base);
		path_refresh(t, p);
		path_refresh(t, &q);
	} else {
		for (int k = 0; k < t->classes; k++)
			path_lower(t, p, k, 0);
		if (t->sums)
			path_add(t, p, 0 - mine);
		leaf_set_above(a, l->above);
		path_refresh(t, &q);
		pool_give(&t->blocks, l);
		shape_drop(t, p, 1);
	}
	if (t->sizes)
		sizes_change(t, (iova_gap){ stop, gap }, (iova_gap){ mine_stop, mine },
			     (iova_gap){ stop, leaf_gap(a, a->count - 1) }, (iova_gap){ 0, 0 });
}

/* Take out entry i of the path's leaf. This cannot fail: where there is no memory to note the gap by
 * size, the order by size goes, and is built again when it is next asked for.
 */
IOVA_INLINE int tree_cut(iova_tree *t, iova_path *p, uint32_t i, uint64_t start, uint64_t len,
			 const lanes *below)
{
	iova_leaf *l = p->leaf;
	uint64_t stop, above, gap;
	int upkeep = __builtin_expect(t->upkeep, 0);

	if (upkeep && t->sizes && !sizes_ready(t))
		sizes_free(t);
	if (__builtin_expect(i == 0, 0)) {
		tree_cut_first(t, p);
		return IOVA_OK;
	}
	stop = l->base + (uint64_t)l->stop[i - 1];
	above = leaf_next(l, i);
	gap = above - stop;
	gap -= gap == 0; /* all 2^64 units */
	lanes_close(l, (int32_t)(start - l->base), below);
	leaf_set_lines(l);
	l->tail = either(i + 1 == l->count, stop, l->tail);
	l->fixed -= (l->fixed & (0 - ((uint64_t)1 << i))) >> 1; /* entry i itself is not */
	l->count--;
	path_raise(t, p, 0, gap);
	if (upkeep)
		tree_gain(t, p, stop, above, start, len);
	if (__builtin_expect(l->count % IOVA_SPARSE == 0, 0))
		tree_join(t, p);
	return IOVA_OK;
}
