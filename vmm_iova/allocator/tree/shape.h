/* SPDX-License-Identifier: Apache-2.0
 *
 * How nodes are split, shared and joined. Part of code.h.
 */
/* --- shape: none of this changes which gaps exist --- */

/* Put a child beside child i of the node at `level` of the path; the node has room. */
static void shape_add(const iova_tree *t, iova_inner *n, int level, uint32_t i, void *child)
{
	inner_move(t, n, i + 1, n, i, n->count - i);
	n->count++;
	inner_note(t, n, level, i, child);
	if (i)
		inner_note(t, n, level, i - 1, n->child[i - 1]);
	inner_index(t, n, i ? i - 1 : 0);
}

/* Move children of one inner node to its neighbour: of child `left` of `up` to the next one, or back,
 * until both have as many. `level` is theirs.
 */
static void inner_share(const iova_tree *t, iova_inner *up, int level, uint32_t left)
{
	iova_inner *a = up->child[left], *b = up->child[left + 1];
	uint32_t half = (a->count + b->count) / 2, moved;

	if (a->count > half) {
		moved = a->count - half;
		inner_move(t, b, moved, b, 0, b->count);
		inner_move(t, b, 0, a, half, moved);
	} else {
		moved = half - a->count;
		inner_move(t, a, a->count, b, 0, moved);
		inner_move(t, b, 0, b, moved, b->count - moved);
	}
	b->count = a->count + b->count - half;
	a->count = half;
	inner_index(t, a, 0);
	inner_index(t, b, 0);
	inner_note(t, up, level + 1, left, a);
	inner_note(t, up, level + 1, left + 1, b);
	inner_index(t, up, 0);
}

/* Make every inner node on the way to x ready to take one more child. */
static int shape_room(iova_tree *t, uint64_t x)
{
	size_t nodes = (size_t)t->height + 2;
	iova_path p;

	if (!pool_reserve(t, &t->inners, nodes) ||
	    !pool_reserve(t, &t->blocks, nodes * inner_blocks(t) + 2))
		return 0;
	for (int level = t->height; level; level--) {
		iova_inner *n, *up, *upper;
		uint32_t half, i;

		path_down(t, &p, x);
		n = p.node[level];
		if (n->count < IOVA_LANES)
			continue;
		if (level == t->height) {
			iova_inner *root = inner_take(t);

			root->count = 1;
			t->root = root;
			t->height++;
			inner_note(t, root, level + 1, 0, n);
			inner_index(t, root, 0);
			path_down(t, &p, x);
		}
		up = p.node[level + 1];
		i = p.at[level + 1];
		half = IOVA_LANES / 2;
		if (p.at[level] + 2 >= n->count) {
			half = IOVA_LANES - 4; /* growth at the end leaves full nodes behind */
		} else if (i + 1 < up->count && ((iova_inner *)up->child[i + 1])->count <= IOVA_FILL) {
			inner_share(t, up, level, i);
			continue;
		} else if (i && ((iova_inner *)up->child[i - 1])->count <= IOVA_FILL) {
			inner_share(t, up, level, i - 1);
			continue;
		}
		upper = inner_take(t);
		upper->count = n->count - half;
		inner_move(t, upper, 0, n, half, upper->count);
		n->count = half;
		inner_index(t, n, 0);
		inner_index(t, upper, 0);
		shape_add(t, up, level + 1, i + 1, upper);
	}
	return 1;
}

/* Take child at path level `level` out of its node, and the node too if it was the last. */
static void shape_drop(iova_tree *t, iova_path *p, int level)
{
	for (;; level++) {
		iova_inner *n = p->node[level];
		uint32_t i = p->at[level];

		inner_move(t, n, i, n, i + 1, n->count - i - 1);
		n->count--;
		if (n->count) {
			/* The child below may have taken in the entries of the one that goes. */
			inner_index(t, n, i ? i - 1 : 0);
			if (i == 0 && level < t->height)
				path_set_key(t, p, level + 1, n->key.at[0]);
			break;
		}
		inner_give(t, n);
	}
	/* Sparse neighbours become one, and a root of one child gives way to it. */
	for (; level < t->height; level++) {
		iova_inner *n = p->node[level], *up = p->node[level + 1], *other;
		uint32_t i = p->at[level + 1], left;

		if (n->count > IOVA_LANES / 2 || up->count == 1)
			break;
		left = i ? i - 1 : 0;
		n = up->child[left];
		other = up->child[left + 1];
		if (n->count + other->count > IOVA_FILL)
			break;
		inner_move(t, n, n->count, other, 0, other->count);
		n->count += other->count;
		inner_index(t, n, 0);
		inner_give(t, other);
		inner_move(t, up, left + 1, up, left + 2, up->count - left - 2);
		up->count--;
		inner_note(t, up, level + 1, left, n);
		inner_index(t, up, 0);
	}
	while (t->height > 1 && t->root->count == 1) {
		iova_inner *root = t->root;

		t->root = root->child[0];
		t->height--;
		inner_give(t, root);
	}
}

/* The leaves around child i of a node that are dealt anew together: the first of them, how many, and
 * how many entries they have.
 */
static uint32_t run_around(const iova_inner *n, uint32_t i, uint32_t *leaves, uint32_t *entries)
{
	uint32_t left = i > IOVA_RUN / 2 ? i - IOVA_RUN / 2 : 0;

	*leaves = n->count < IOVA_RUN ? n->count : IOVA_RUN;
	if (left > n->count - *leaves)
		left = n->count - *leaves;
	*entries = 0;
	for (uint32_t j = left; j < left + *leaves; j++)
		*entries += ((iova_leaf *)n->child[j])->count;
	return left;
}

/* Take in leaves; 0 where they lie too far from each other. */
static int run_take(iova_run *r, const iova_inner *n, uint32_t left, uint32_t leaves)
{
	r->count = 0;
	for (uint32_t i = left; i < left + leaves; i++)
		if (!run_add(r, n->child[i]))
			return 0;
	return 1;
}

/* Deal the entries of a run to children [left, left + leaves) of a node: `first` to the first of
 * them, and as many to each of the others.
 */
static void run_deal(const iova_tree *t, const iova_run *r, iova_inner *n, uint32_t left,
		     uint32_t leaves, uint32_t first)
{
	uint32_t from = 0;

	for (uint32_t i = 0; i < leaves; i++) {
		uint32_t count = i ? (r->count - from) / (leaves - i) : first;
		if (i + 1 < leaves)
			count -= (uint32_t)run_pair(r, from + count);
		run_write(r, n->child[left + i], from, count);
		inner_note(t, n, 1, left + i, n->child[left + i]);
		from += count;
	}
	inner_index(t, n, left);
}

/* Make room for an entry at `start` in the full leaf of the path.
 * PERF: what is dealt anew has room for six entries or more in each leaf, so that it is not dealt
 * again soon; and seven leaves become eight rather than one two, which keeps them fuller.
 */
IOVA_RARE int shape_split(iova_tree *t, iova_path *p, uint64_t start)
{
	/* Growth at the end, or before what bounds the space, leaves full leaves behind. */
	int grows = leaf_seek(p->leaf, start) + 2 >= IOVA_LANES;
	iova_inner *n = p->node[1];
	uint32_t left, leaves, entries;
	iova_run r;

	left = run_around(n, p->at[1], &leaves, &entries);
	if (!grows && entries <= leaves * IOVA_SHARE && run_take(&r, n, left, leaves)) {
		run_deal(t, &r, n, left, leaves, r.count / leaves);
		return 1;
	}
	if (n->count == IOVA_LANES || !t->blocks.spare) {
		if (!shape_room(t, start))
			return 0;
		path_down(t, p, start);
		n = p->node[1];
		left = run_around(n, p->at[1], &leaves, &entries);
	}
	if (grows || !run_take(&r, n, left, leaves)) {
		left = p->at[1];
		leaves = 1;
		run_take(&r, n, left, leaves);
	}
	inner_move(t, n, left + leaves + 1, n, left + leaves, n->count - left - leaves);
	n->child[left + leaves] = pool_take(&t->blocks);
	n->count++;
	run_deal(t, &r, n, left, leaves + 1, grows ? IOVA_LANES - 1 : r.count / (leaves + 1));
	return 1;
}
