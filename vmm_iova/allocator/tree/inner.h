/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner nodes of the tree, what they keep of their children, and the paths from the root to a
 * leaf. Part of code.h, which has the shapes.
 */

/* The last child whose first entry starts at x or below. */
IOVA_INLINE uint32_t inner_seek(const iova_inner *n, uint64_t x)
{
	/* A node holds x only if its first key is at most x. */
	uint32_t group = atmost8(n->key.top, key_of(x)) - 1;
	uint32_t i = 8 * group + atmost8(n->key.at + 8 * group, key_of(x));

	return (i < n->count ? i : n->count) - 1;
}

/* Bit i: eight children of a group, or eight groups, have `need` by plane k.
 * With plane 0 it is not above IOVA_FAR.
 */
IOVA_INLINE uint32_t group_least(const iova_inner *n, int k, uint64_t need, uint32_t group)
{
	return k ? least8(n->more[k]->at + 8 * group, need)
		 : near_least8(n->max.at + 8 * group, (int32_t)need);
}

IOVA_INLINE uint32_t groups_least(const iova_inner *n, int k, uint64_t need)
{
	return k ? least8(n->more[k]->top, need) : near_least8(n->max.top, (int32_t)need);
}

/* The first child that has `need`: one has. */
IOVA_INLINE uint32_t inner_hit(const iova_inner *n, int k, uint64_t need)
{
	uint32_t group = (uint32_t)__builtin_ctz(groups_least(n, k, need));

	return 8 * group + (uint32_t)__builtin_ctz(group_least(n, k, need, group));
}

/* The first child from `from` on that has `need`, or IOVA_LANES. */
IOVA_INLINE uint32_t inner_first(const iova_inner *n, int k, uint64_t need, uint32_t from)
{
	uint32_t group = from / 8, bits;

	if (from >= IOVA_LANES)
		return IOVA_LANES;
	bits = from % 8 ? group_least(n, k, need, group) & (0xffu << from % 8) : 0;
	if (!bits) {
		bits = groups_least(n, k, need) & (0xffu << (from + 7) / 8);
		if (!bits)
			return IOVA_LANES;
		group = (uint32_t)__builtin_ctz(bits);
		bits = group_least(n, k, need, group);
	}
	return 8 * group + (uint32_t)__builtin_ctz(bits);
}

/* The last child below `below` that has `need`, or IOVA_LANES. */
IOVA_INLINE uint32_t inner_last(const iova_inner *n, int k, uint64_t need, uint32_t below)
{
	uint32_t group = below / 8;
	uint32_t bits = below % 8 ? group_least(n, k, need, group) & ((1u << below % 8) - 1) : 0;

	if (!bits) {
		bits = groups_least(n, k, need) & ((1u << group) - 1);
		if (!bits)
			return IOVA_LANES;
		group = 31 - (uint32_t)__builtin_clz(bits);
		bits = group_least(n, k, need, group);
	}
	return 8 * group + 31 - (uint32_t)__builtin_clz(bits);
}

/* What a node tells of child i by plane k: 0 at most IOVA_FAR. */
IOVA_INLINE uint64_t inner_number(const iova_inner *n, int k, uint32_t i)
{
	return k ? n->more[k]->at[i] : (uint64_t)n->max.at[i];
}

/* The largest number of all children. */
IOVA_INLINE uint64_t inner_most(const iova_inner *n, int k)
{
	return k ? max8(n->more[k]->top) : (uint64_t)near_max8(n->max.top);
}

/* Set the number of child i. */
IOVA_INLINE void inner_set(iova_inner *n, int k, uint32_t i, uint64_t value)
{
	if (k) {
		n->more[k]->at[i] = value;
		n->more[k]->top[i / 8] = max8(n->more[k]->at + i / 8 * 8);
	} else {
		near_set8(n->max.top, i / 8, near_set8(n->max.at + i / 8 * 8, i % 8, near(value)));
	}
}

/* Bring the short lists of a node up to date with the long ones, from child `from` on. */
static void inner_index(const iova_tree *t, iova_inner *n, uint32_t from)
{
	for (uint32_t i = n->count; i < IOVA_LANES; i++) {
		n->key.at[i] = key_of(~(uint64_t)0);
		n->child[i] = NULL;
	}
	for (uint32_t g = from / 8; g < 8; g++)
		n->key.top[g] = n->key.at[8 * g];
	for (uint32_t i = n->count; i < IOVA_LANES; i++)
		n->max.at[i] = 0;
	for (uint32_t g = from / 8; g < 8; g++)
		n->max.top[g] = near_max8(n->max.at + 8 * g);
	for (int k = 1; k < t->classes; k++) {
		iova_plane *p = n->more[k];

		for (uint32_t i = n->count; i < IOVA_LANES; i++)
			p->at[i] = 0;
		for (uint32_t g = from / 8; g < 8; g++)
			p->top[g] = max8(p->at + 8 * g);
	}
}

/* Move children [from, from + count) of one node to `to` of another, or of the same. */
static void inner_move(const iova_tree *t, iova_inner *into, uint32_t to, iova_inner *n,
		       uint32_t from, uint32_t count)
{
	memmove(into->key.at + to, n->key.at + from, count * sizeof *n->key.at);
	memmove(into->child + to, n->child + from, count * sizeof *n->child);
	memmove(into->max.at + to, n->max.at + from, count * sizeof *n->max.at);
	for (int k = 1; k < t->classes; k++)
		memmove(into->more[k]->at + to, n->more[k]->at + from, count * sizeof(uint64_t));
	if (t->sums)
		memmove(into->more[IOVA_SUM]->at + to, n->more[IOVA_SUM]->at + from,
			count * sizeof(uint64_t));
}

/* Blocks that a new inner node takes beside itself. */
IOVA_INLINE size_t inner_blocks(const iova_tree *t)
{
	return (size_t)(t->classes - 1 + t->sums + 1);
}

/* Give a node the list of its planes. */
static void inner_more(iova_tree *t, iova_inner *n)
{
	n->more = pool_take(&t->blocks);
	memset(n->more, 0, IOVA_MORE * sizeof *n->more);
}

static iova_inner *inner_take(iova_tree *t)
{
	iova_inner *n = pool_take(&t->inners);

	n->count = 0;
	n->more = NULL;
	if (t->classes > 1 || t->sums)
		inner_more(t, n);
	for (int k = 1; k < t->classes; k++)
		n->more[k] = pool_take(&t->blocks);
	if (t->sums)
		n->more[IOVA_SUM] = pool_take(&t->blocks);
	return n;
}

static void inner_give(iova_tree *t, iova_inner *n)
{
	for (int k = 1; k < t->classes; k++)
		pool_give(&t->blocks, n->more[k]);
	if (t->sums)
		pool_give(&t->blocks, n->more[IOVA_SUM]);
	if (n->more)
		pool_give(&t->blocks, n->more);
	pool_give(&t->inners, n);
}

/* What a parent keeps of a child, in plane number k. */
static uint64_t child_number(const iova_tree *t, int level, const void *child, int k)
{
	if (level == 1 && k == IOVA_SUM)
		return leaf_sum(child);
	if (level == 1) {
		uint64_t most = leaf_max(child, t->mask[k]);

		return k || most < IOVA_FAR ? most : IOVA_FAR;
	}
	if (k == IOVA_SUM) {
		const iova_inner *n = child;
		uint64_t sum = 0;

		for (uint32_t i = 0; i < n->count; i++)
			sum += n->more[IOVA_SUM]->at[i];
		return sum;
	}
	return inner_most(child, k);
}

/* Note child i of a node at `level` with its key and numbers. The node's index is left stale. */
static void inner_note(const iova_tree *t, iova_inner *n, int level, uint32_t i, void *child)
{
	n->child[i] = child;
	n->key.at[i] = level == 1 ? key_of(((iova_leaf *)child)->base)
				  : ((iova_inner *)child)->key.at[0];
	n->max.at[i] = (int32_t)child_number(t, level, child, 0);
	for (int k = 1; k < t->classes; k++)
		n->more[k]->at[i] = child_number(t, level, child, k);
	if (t->sums)
		n->more[IOVA_SUM]->at[i] = child_number(t, level, child, IOVA_SUM);
}

/* --- paths --- */

IOVA_INLINE void path_down(const iova_tree *t, iova_path *p, uint64_t x)
{
	void *n = t->root;

	for (int level = t->height; level; level--) {
		iova_inner *in = n;
		uint32_t i = inner_seek(in, x);

		p->node[level] = in;
		p->at[level] = i;
		n = in->child[i];
	}
	p->leaf = n;
}

/* From the child chosen at `level` down to the first, or last, leaf that has `need`. */
IOVA_INLINE void path_down_to(iova_path *p, int level, int k, uint64_t need, int last)
{
	void *n = p->node[level]->child[p->at[level]];

	while (--level) {
		iova_inner *in = n;
		uint32_t i = last ? inner_last(in, k, need, IOVA_LANES) : inner_hit(in, k, need);

		p->node[level] = in;
		p->at[level] = i;
		n = in->child[i];
	}
	p->leaf = n;
}

/* Go to the first leaf after this one that has `need`, or to the last before it. */
static inline int path_beside(const iova_tree *t, iova_path *p, int k, uint64_t need, int last)
{
	for (int level = 1; level <= t->height; level++) {
		const iova_inner *n = p->node[level];
		uint32_t i = last ? inner_last(n, k, need, p->at[level])
				  : inner_first(n, k, need, p->at[level] + 1);

		if (i < IOVA_LANES) {
			p->at[level] = i;
			path_down_to(p, level, k, need, last);
			return 1;
		}
	}
	return 0;
}

/* Go to the next leaf (step 1) or to the one before (step -1). */
static int path_step(const iova_tree *t, iova_path *p, int step)
{
	int level = 1;
	void *n;

	while (level <= t->height && (step > 0 ? p->at[level] + 1 == p->node[level]->count
					       : p->at[level] == 0))
		level++;
	if (level > t->height)
		return 0;
	p->at[level] += (uint32_t)step;
	n = p->node[level]->child[p->at[level]];
	while (--level) {
		p->node[level] = n;
		p->at[level] = step > 0 ? 0 : p->node[level]->count - 1;
		n = p->node[level]->child[p->at[level]];
	}
	p->leaf = n;
	return 1;
}

IOVA_INLINE void path_add(const iova_tree *t, const iova_path *p, uint64_t units)
{
	for (int level = 1; level <= t->height; level++)
		p->node[level]->more[IOVA_SUM]->at[p->at[level]] += units;
}

/* The first entry of the leaf has changed its start. */
static void path_set_key(const iova_tree *t, const iova_path *p, int level, int64_t key)
{
	for (; level <= t->height; level++) {
		uint32_t i = p->at[level];

		p->node[level]->key.at[i] = key;
		if (i % 8 == 0)
			p->node[level]->key.top[i / 8] = key;
		if (i)
			return;
	}
}

/* Work out anew what the nodes above the leaf tell of it. For what happens seldom. */
static void path_refresh(const iova_tree *t, const iova_path *p)
{
	for (int level = 1; level <= t->height; level++) {
		const void *child = level == 1 ? (void *)p->leaf : (void *)p->node[level - 1];
		iova_inner *n = p->node[level];

		for (int k = 0; k < t->classes; k++)
			inner_set(n, k, p->at[level], child_number(t, level, child, k));
		if (t->sums)
			n->more[IOVA_SUM]->at[p->at[level]] =
				child_number(t, level, child, IOVA_SUM);
	}
}

/* The leaf has `most` at most in plane k now, and had more: note it there and above.
 * PERF: the first level is set in any case, for whether it changes is a coin toss.
 */
IOVA_INLINE void path_lower(const iova_tree *t, const iova_path *p, int k, uint64_t most)
{
	inner_set(p->node[1], k, p->at[1], most);
	for (int level = 2; level <= t->height; level++) {
		most = inner_most(p->node[level - 1], k);
		if (inner_number(p->node[level], k, p->at[level]) == most)
			break;
		inner_set(p->node[level], k, p->at[level], most);
	}
}

/* The leaf can have `size` in plane k now, if it could not before. */
IOVA_INLINE void path_raise(const iova_tree *t, const iova_path *p, int k, uint64_t size)
{
	for (int level = 1; level <= t->height; level++) {
		iova_inner *n = p->node[level];
		uint32_t i = p->at[level];

		if (k) {
			n->more[k]->at[i] = larger_of(size, n->more[k]->at[i]);
			n->more[k]->top[i / 8] = larger_of(size, n->more[k]->top[i / 8]);
		} else {
			near_raise8(n->max.at + i / 8 * 8, i % 8, near(size));
			near_raise8(n->max.top, i / 8, near(size));
		}
	}
}
