/* SPDX-License-Identifier: Apache-2.0
 *
 * The set of taken ranges, in units of one granule, and the searches over the gaps between them.
 *
 * An entry is [start, start + len). Fixed entries are what may not be used: the spaces between the
 * usable ranges, an entry of no length at each seam between two that touch, and, where address 0
 * is usable but must not be chosen, one unit at 0 that only a placed allocation replaces. An
 * entry at 0 always exists, so every gap has an entry below it, which owns it.
 *
 * Shape. A B+tree of the entries by address. A leaf keeps up to 64 of them as 32-bit distances
 * from its first, so that eight bytes hold an entry and one vector loop looks at all gaps of a
 * leaf; an entry that lies or reaches 2^31 units away is the first or the last of its leaf. Inner
 * nodes keep, for each child, the largest size that can be had below it: one plane of numbers for
 * each alignment in use. So a search goes straight down to the first, or last, gap that fits,
 * at any alignment, from any address on.
 *
 * What costs upkeep exists from the moment it is first needed, and is then kept: the plane of an
 * alignment, the plane of sums that counts what is free in a window, and the tree of gaps by size
 * that best fit searches. Each is built in one pass over the entries.
 *
 * Numbers wrap at 2^64: `top` is 0 when the space has 2^64 units. Nothing here touches Python;
 * every function may run without the GIL, and none may run beside another on the same tree.
 */
#ifndef VMM_IOVA_TREE_H
#define VMM_IOVA_TREE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define IOVA_INLINE static inline __attribute__((always_inline, unused))
#define IOVA_RARE static __attribute__((noinline, cold, unused))
#else
#define IOVA_INLINE static inline
#define IOVA_RARE static
#endif

/* A function that loops over lanes is written once, with `wide` for the number of lanes at once,
 * and compiled for each: the name with _8 may use AVX2 and what came with it, the name with _4 runs
 * on every CPU of the architecture, and the name alone takes the one for this CPU.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(VMM_IOVA_BASELINE)
#define IOVA_TWO_WIDTHS
#define IOVA_EACH_WIDTH(type, name, parameters, ...)                                   \
	static __attribute__((unused, target("avx2,bmi,bmi2,popcnt"))) type name##_8 parameters \
	{                                                                              \
		return name##_any(__VA_ARGS__, 1);                                     \
	}                                                                              \
	static __attribute__((unused)) type name##_4 parameters                        \
	{                                                                              \
		return name##_any(__VA_ARGS__, 0);                                     \
	}                                                                              \
	IOVA_INLINE type name parameters                                               \
	{                                                                              \
		return iova_wide ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__);      \
	}
static int iova_wide;

static __attribute__((constructor)) void iova_look(void)
{
	__builtin_cpu_init();
	iova_wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
		    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
#else
#define IOVA_EACH_WIDTH(type, name, parameters, ...)            \
	static __attribute__((unused)) type name##_4 parameters \
	{                                                       \
		return name##_any(__VA_ARGS__, 0);              \
	}                                                       \
	IOVA_INLINE type name parameters                        \
	{                                                       \
		return name##_4(__VA_ARGS__);                   \
	}
static const int iova_wide = 0;
#endif

enum { IOVA_OK, IOVA_NONE, IOVA_TAKEN, IOVA_OTHER, IOVA_NOMEM };
enum { IOVA_FIRST, IOVA_LAST, IOVA_BEST };

enum {
	IOVA_LANES = 64, /* entries of a leaf, children of an inner node */
	IOVA_DEEP = 16, /* levels: a node of three or more halves what is above */
	IOVA_FILL = 56, /* children that bulk building gives a node */
	IOVA_SHARE = 48, /* a leaf with more takes no entries from a full neighbour */
	IOVA_JOIN = 56, /* two leaves with more together stay two */
	IOVA_SPARSE = 30, /* a leaf with more does not look for one to join */
	IOVA_SUM = 64, /* number of the plane of sums; the others are alignment classes */
	IOVA_MORE = 72,
	IOVA_NEAR = 4 << 20 /* bytes of leaves that the nearest caches hold anyway */
};
#define IOVA_FAR 0x7fffffff /* a distance of 2^31 - 1 units or more */

typedef struct iova_entry {
	uint64_t start, len;
	int fixed;
} iova_entry;

/* One number for each child, and one for each eight of them: the largest, or of keys the first. */
typedef struct {
	uint64_t top[8];
	uint64_t at[IOVA_LANES];
} iova_plane;

typedef struct {
	uint64_t base; /* where entry 0 starts */
	uint64_t above; /* where the first entry of the next leaf starts, or top */
	uint64_t tail; /* where the last entry stops */
	uint64_t fixed; /* bit i: entry i is fixed */
	uint32_t count;
	int32_t line[3]; /* next[15], next[31], next[47]: which cache line of `next` to look at */
	uint32_t spare[4];
	/* From base on, capped at IOVA_FAR; lanes beyond the last are IOVA_FAR, which makes no gap. */
	int32_t next[IOVA_LANES]; /* where entry i + 1 starts */
	int32_t stop[IOVA_LANES]; /* where entry i stops */
} iova_leaf;

typedef struct {
	iova_plane key; /* where the first entry below a child starts */
	iova_plane max; /* largest gap below a child */
	void *child[IOVA_LANES];
	uint32_t count;
	iova_plane *more[IOVA_MORE]; /* planes of the other alignments and of the sums, by number */
} iova_inner;

/* Where an entry is: node[1] holds the leaf, node[height] is the root. */
typedef struct {
	iova_leaf *leaf;
	iova_inner *node[IOVA_DEEP];
	uint32_t at[IOVA_DEEP];
} iova_path;

/* Blocks of one size; those given back are kept, so what was undone can be done again. */
typedef struct {
	size_t size;
	void *free;
	size_t spare; /* free and untouched blocks */
	char *fresh;
	size_t left; /* untouched blocks at fresh */
	void *chunks;
	size_t bytes;
} iova_pool;

struct iova_sizes;

typedef struct iova_tree {
	iova_inner *root;
	int height; /* levels of inner nodes, 1 or more */
	int classes; /* alignments in use; number 0 is one unit */
	uint64_t mask[IOVA_LANES]; /* alignment - 1, by class */
	uint8_t class_of[IOVA_LANES]; /* by log2 of the alignment; 0 is "none" but for log2 0 */
	int sums; /* the plane of sums exists */
	int keep_zero; /* the entry at 0 is the unit that must not be chosen */
	uint64_t top;
	struct iova_sizes *sizes; /* the gaps by size, or NULL */
	iova_pool blocks; /* leaves, planes, lists of planes */
	iova_pool inners;
	uint64_t fail_after; /* chunks that may still be had: tests make it small */
} iova_tree;

#include "leaf.h"
#include "inner.h"

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

		if (n->count > IOVA_LANES / 4 || up->count == 1)
			break;
		left = i ? i - 1 : 0;
		n = up->child[left];
		other = up->child[left + 1];
		if (n->count + other->count > IOVA_LANES * 3 / 4)
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
 * PERF: what is dealt anew has room for eight entries or more in each leaf, so that it is not dealt
 * again soon; and two leaves become three rather than one two, which keeps them fuller.
 */
static int shape_split(iova_tree *t, iova_path *p, uint64_t start)
{
	/* Growth at the end, or before what bounds the space, leaves full leaves behind. */
	int grows = leaf_seek(p->leaf, start) + 2 >= IOVA_LANES;
	uint32_t left, leaves = 1;
	iova_inner *n = p->node[1];
	iova_run r;

	for (uint32_t step = 0; step < 2 && !grows; step++) {
		left = p->at[1] - step;
		if (left >= n->count - 1 || ((iova_leaf *)n->child[left + !step])->count > IOVA_SHARE)
			continue;
		r.count = 0;
		if (run_add(&r, n->child[left]) && run_add(&r, n->child[left + 1])) {
			run_deal(t, &r, n, left, 2, r.count / 2);
			return 1;
		}
	}
	if (n->count == IOVA_LANES || !t->blocks.spare) {
		if (!shape_room(t, start))
			return 0;
		path_down(t, p, start);
		n = p->node[1];
	}
	left = p->at[1];
	r.count = 0;
	if (!grows && left + 1 == n->count && left)
		left--;
	run_add(&r, n->child[left]);
	if (!grows && left + 1 < n->count && run_add(&r, n->child[left + 1])) {
		leaves = 2;
	} else if (left != p->at[1]) {
		left = p->at[1];
		r.count = 0;
		run_add(&r, n->child[left]);
	}
	inner_move(t, n, left + leaves + 1, n, left + leaves, n->count - left - leaves);
	n->child[left + leaves] = pool_take(&t->blocks);
	n->count++;
	run_deal(t, &r, n, left, leaves + 1, grows ? IOVA_LANES - 1 : r.count / (leaves + 1));
	return 1;
}

#include "sizes.h"

/* --- planes that come to be when they are first needed --- */

static size_t inner_number(const iova_inner *n, int level)
{
	size_t number = 1;

	for (uint32_t i = 0; level > 1 && i < n->count; i++)
		number += inner_number(n->child[i], level - 1);
	return number;
}

static void plane_build(iova_tree *t, iova_inner *n, int level, int k)
{
	iova_plane *plane;

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

static size_t gaps_count(const iova_gaps *g, int level)
{
	size_t number = 1;

	for (uint64_t i = 0; level > 1 && i < g->count; i++)
		number += gaps_count(g->child[i], level - 1);
	return level ? number : 0;
}

static void gaps_build(iova_tree *t, iova_gaps *g, int level, int k)
{
	if (!level)
		return;
	if (!g->more) {
		g->more = pool_take(&t->blocks);
		memset(g->more, 0, IOVA_MORE * sizeof *g->more);
	}
	g->more[k] = pool_take(&t->blocks);
	for (uint64_t i = 0; i < g->count; i++) {
		gaps_build(t, g->child[i], level - 1, k);
		g->more[k]->at[i] = gaps_number(t, level - 1, g->child[i], k);
	}
}

IOVA_RARE int tree_class(iova_tree *t, int shift)
{
	size_t nodes = inner_number(t->root, t->height);
	int k = t->classes;

	if (t->sizes)
		nodes += gaps_count(t->sizes->root, t->sizes->height);
	if (!pool_reserve(t, &t->blocks, 2 * nodes))
		return 0;
	t->mask[k] = ((uint64_t)1 << shift) - 1;
	plane_build(t, t->root, t->height, k);
	if (t->sizes)
		gaps_build(t, t->sizes->root, t->sizes->height, k);
	t->class_of[shift] = (uint8_t)k;
	t->classes++;
	return 1;
}

IOVA_RARE int tree_sums(iova_tree *t)
{
	if (!pool_reserve(t, &t->blocks, inner_number(t->root, t->height)))
		return 0;
	plane_build(t, t->root, t->height, IOVA_SUM);
	t->sums = 1;
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

/* Put an entry into the gap above entry i of the path's leaf. */
IOVA_INLINE int tree_put(iova_tree *t, iova_path *p, uint32_t i, uint64_t start, uint64_t len,
			 int wide)
{
	iova_leaf *l = p->leaf;
	uint64_t stop, gap, kept, last;
	int32_t most;

	if (__builtin_expect(t->sizes != NULL, 0) && !sizes_ready(t))
		return IOVA_NOMEM;
	if (__builtin_expect(start - l->base >= IOVA_FAR, 0))
		return tree_put_far(t, start, len);
	if (__builtin_expect(l->count == IOVA_LANES, 0)) {
		if (!shape_split(t, p, start))
			return IOVA_NOMEM;
		path_down(t, p, start);
		l = p->leaf;
		i = leaf_seek(l, start);
	}
	stop = leaf_stop(l, i);
	gap = leaf_gap(l, i);
	most = BY_WIDTH(lanes_open, l, i, (int32_t)(start - l->base),
			len < IOVA_FAR ? near(start + len - l->base) : IOVA_FAR);
	leaf_set_lines(l);
	l->tail = i + 1 == l->count ? start + len : l->tail;
	kept = ((uint64_t)2 << i) - 1;
	l->fixed = (l->fixed & kept) | ((l->fixed & ~kept) << 1);
	l->count++;
	last = leaf_gap(l, l->count - 1);
	path_lose(t, p, stop, gap, last > (uint64_t)most ? last : (uint64_t)most, wide);
	if (__builtin_expect(t->sums, 0))
		path_add(t, p, 0 - len);
	if (__builtin_expect(t->sizes != NULL, 0))
		BY_WIDTH(sizes_change, t, (iova_gap){ stop, gap }, (iova_gap){ 0, 0 },
			     (iova_gap){ stop, start - stop },
			     (iova_gap){ start + len, leaf_gap(l, i + 1) });
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

/* Make one leaf of the path's and a neighbour, if both are sparse. */
static void tree_join(iova_tree *t, iova_path *p)
{
	iova_inner *n = p->node[1];

	for (uint32_t step = 0; step < 2; step++) {
		uint32_t left = p->at[1] - step;
		iova_leaf *a, *b;
		iova_run r;

		if (left >= n->count - 1)
			continue;
		a = n->child[left];
		b = n->child[left + 1];
		r.count = 0;
		if (a->count + b->count > IOVA_JOIN || !run_add(&r, a) || !run_add(&r, b))
			continue;
		run_write(&r, a, 0, r.count);
		inner_note(t, n, 1, left, a);
		pool_give(&t->blocks, b);
		p->at[1] = left + 1;
		shape_drop(t, p, 1);
		return;
	}
}

/* Take out entry 0 of a leaf that is not the first: its space goes to the leaf before. */
static void tree_cut_first(iova_tree *t, iova_path *p)
{
	iova_leaf *l = p->leaf, *a;
	iova_run r;
	iova_path q = *p;
	uint64_t stop, gap, mine_stop = leaf_stop(l, 0), mine = leaf_gap(l, 0);

	path_step(t, &q, -1);
	a = q.leaf;
	stop = a->tail;
	gap = leaf_gap(a, a->count - 1);
	if (l->count > 1) {
		r.count = 0;
		run_add(&r, l);
		run_write(&r, l, 1, l->count - 1);
		path_set_key(t, p, 1, l->base);
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
IOVA_INLINE int tree_cut(iova_tree *t, iova_path *p, uint32_t i, int wide)
{
	iova_leaf *l = p->leaf;
	uint64_t stop, gap, mine, mine_stop, kept;

	if (__builtin_expect(t->sizes != NULL, 0) && !sizes_ready(t))
		sizes_free(t);
	if (__builtin_expect(i == 0, 0)) {
		tree_cut_first(t, p);
		return IOVA_OK;
	}
	stop = l->base + (uint64_t)l->stop[i - 1];
	gap = (uint64_t)(l->next[i - 1] - l->stop[i - 1]);
	mine_stop = leaf_stop(l, i);
	mine = leaf_gap(l, i);
	BY_WIDTH(lanes_down, l->next, i - 1);
	leaf_set_lines(l);
	BY_WIDTH(lanes_down, l->stop, i);
	l->tail = i + 1 == l->count ? stop : l->tail;
	kept = ((uint64_t)1 << i) - 1;
	l->fixed = (l->fixed & kept) | ((l->fixed >> 1) & ~kept);
	l->count--;
	path_gain(t, p, stop, leaf_gap(l, i - 1));
	if (__builtin_expect(t->sums, 0))
		path_add(t, p, mine_stop - stop - gap);
	if (__builtin_expect(t->sizes != NULL, 0))
		BY_WIDTH(sizes_change, t, (iova_gap){ stop, gap }, (iova_gap){ mine_stop, mine },
			     (iova_gap){ stop, leaf_gap(l, i - 1) }, (iova_gap){ 0, 0 });
	if (__builtin_expect(l->count <= IOVA_SPARSE, 0))
		tree_join(t, p);
	return IOVA_OK;
}

/* --- searches --- */

/* The lowest place in the gap above entry i, cut to [low, high]. */
IOVA_INLINE int gap_place(const iova_leaf *l, uint32_t i, uint64_t need, uint64_t mask,
			  uint64_t low, uint64_t high, uint64_t *place)
{
	uint64_t first = leaf_stop(l, i), last = leaf_next(l, i) - 1, at;

	if (!leaf_gap(l, i))
		return 0;
	first = first < low ? low : first;
	last = last > high ? high : last;
	at = (first + mask) & ~mask;
	if (at < first || at > last || need - 1 > last - at)
		return 0;
	*place = at;
	return 1;
}

IOVA_INLINE int choose_first_any(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
			uint64_t low, uint64_t high, uint64_t *place, int wide)
{
	uint64_t mask = t->mask[k];
	uint32_t i;

	/* The gap that `low` may cut, then the first whole one that fits. */
	path_down(t, p, low);
	i = leaf_seek(p->leaf, low);
	if (!gap_place(p->leaf, i, need, mask, low, high, place)) {
		i = leaf_first(p->leaf, mask, need, i + 1, wide);
		if (i == IOVA_LANES) {
			if (!path_beside(t, p, k, need, 0))
				return 0;
			i = leaf_first(p->leaf, mask, need, 0, wide);
		}
		/* One that `high` cuts too short has only higher ones above it. */
		if (!gap_place(p->leaf, i, need, mask, low, high, place))
			return 0;
	}
	*entry = i;
	return 1;
}
IOVA_EACH_WIDTH(int, choose_first, (const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k, uint64_t low, uint64_t high, uint64_t *place), t, p, entry, need, k, low, high, place)

IOVA_INLINE int choose_last_any(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
		       uint64_t low, uint64_t high, uint64_t *place, int wide)
{
	uint64_t mask = t->mask[k], last, dummy;
	uint32_t i;

	path_down(t, p, high);
	i = leaf_seek(p->leaf, high);
	if (!gap_place(p->leaf, i, need, mask, low, high, &dummy)) {
		i = leaf_last(p->leaf, mask, need, i, wide);
		if (i == IOVA_LANES) {
			if (!path_beside(t, p, k, need, 1))
				return 0;
			i = leaf_last(p->leaf, mask, need, IOVA_LANES, wide);
		}
		if (!gap_place(p->leaf, i, need, mask, low, high, &dummy))
			return 0;
	}
	last = leaf_next(p->leaf, i) - 1;
	last = last > high ? high : last;
	*place = (last - (need - 1)) & ~mask;
	*entry = i;
	return 1;
}
IOVA_EACH_WIDTH(int, choose_last, (const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k, uint64_t low, uint64_t high, uint64_t *place), t, p, entry, need, k, low, high, place)

/* Best fit: the order by size tells the smallest gap; but the gaps that an edge of the window
 * cuts have another size there, and those outside do not count. Sizes, and gaps of the window by
 * address, are looked at in turns, so the cost is that of the shorter of both lists.
 */
IOVA_INLINE int choose_best_any(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
		       uint64_t low, uint64_t high, uint64_t *place, int wide)
{
	uint64_t mask = t->mask[k], at = 0, best_size = 0, best_start = 0, best_at = 0;
	uint64_t size = need, start = 0, from = low;
	int found = 0, whole = low == 0 && high == t->top - 1;

	if (!whole) {
		uint64_t edges[2] = { low, high };

		for (int e = 0; e < 2; e++) {
			uint64_t first, last;
			uint32_t i;

			path_down(t, p, edges[e]);
			i = leaf_seek(p->leaf, edges[e]);
			if (!gap_place(p->leaf, i, need, mask, low, high, &at))
				continue;
			first = leaf_stop(p->leaf, i);
			last = leaf_next(p->leaf, i) - 1;
			first = first < low ? low : first;
			last = last > high ? high : last;
			if (!found || last - first + 1 < best_size) {
				best_size = last - first + 1;
				best_start = first;
				best_at = at;
				found = 1;
			}
		}
	}
	while (sizes_next(t, k, need, &size, &start, wide)) {
		if (found && (size > best_size || (size == best_size && start >= best_start)))
			break;
		if (whole || (start >= low && start <= high && size - 1 <= high - start)) {
			best_at = (start + mask) & ~mask;
			found = 1;
			break;
		}
		/* On to where the next that counts may be: many gaps of one size are one step. */
		if (start < low)
			start = low;
		else if (start <= high)
			start++;
		else if (++size == 0)
			break;
		else
			start = 0;
		/* In turn: one of the window's gaps. */
		if (from > high || !BY_WIDTH(choose_first, t, p, entry, need, k, from, high, &at))
			break;
		{
			uint64_t first = leaf_stop(p->leaf, *entry);
			uint64_t last = leaf_next(p->leaf, *entry) - 1;

			first = first < low ? low : first;
			last = last > high ? high : last;
			if (!found || last - first + 1 < best_size ||
			    (last - first + 1 == best_size && first < best_start)) {
				best_size = last - first + 1;
				best_start = first;
				best_at = at;
				found = 1;
			}
			from = last + 1;
			if (from == 0)
				break;
		}
	}
	if (!found)
		return 0;
	path_down(t, p, best_at);
	*entry = leaf_seek(p->leaf, best_at);
	*place = best_at;
	return 1;
}
IOVA_EACH_WIDTH(int, choose_best, (const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k, uint64_t low, uint64_t high, uint64_t *place), t, p, entry, need, k, low, high, place)

/* --- what the engine calls --- */

static void iova_tree_free(iova_tree *t)
{
	if (!t)
		return;
	if (t->sizes) {
		pool_clear(&t->sizes->inners);
		free(t->sizes);
	}
	pool_clear(&t->blocks);
	pool_clear(&t->inners);
	free(t);
}

/* Make a tree of entries that are ascending, the first at 0. */
static iova_tree *iova_tree_new(const iova_entry *entries, size_t count, uint64_t top,
				int keep_zero)
{
	iova_tree *t = calloc(1, sizeof *t);
	size_t i = 0;

	if (!t)
		return NULL;
	t->blocks.size = (sizeof(iova_leaf) + 63) / 64 * 64;
	t->inners.size = (sizeof(iova_inner) + 63) / 64 * 64;
	t->fail_after = ~(uint64_t)0;
	t->classes = 1;
	t->top = top;
	t->keep_zero = keep_zero;
	t->height = 1;
	if (!pool_reserve(t, &t->inners, 1))
		goto fail;
	t->root = inner_take(t);
	inner_index(t, t->root, 0);
	while (i < count) {
		size_t n = 1;
		iova_leaf *l;

		while (n < IOVA_FILL && i + n < count &&
		       entries[i + n].start - entries[i].start < IOVA_FAR &&
		       entries[i + n - 1].start + entries[i + n - 1].len - entries[i].start < IOVA_FAR)
			n++;
		if (i + n < count && entries[i + n].start == entries[i + n - 1].start)
			n++;
		if (!shape_room(t, entries[i].start))
			goto fail;
		l = pool_take(&t->blocks);
		leaf_write(l, entries + i, (uint32_t)n, i + n < count ? entries[i + n].start : top);
		if (i == 0) {
			t->root->count = 1;
			inner_note(t, t->root, 1, 0, l);
			inner_index(t, t->root, 0);
		} else {
			iova_path p;

			path_down(t, &p, entries[i].start);
			shape_add(t, p.node[1], 1, p.at[1] + 1, l);
			path_down(t, &p, entries[i].start);
			path_refresh(t, &p);
		}
		i += n;
	}
	return t;
fail:
	iova_tree_free(t);
	return NULL;
}

/* Own [start, start + len) if it is free. */
IOVA_INLINE int iova_insert_any(iova_tree *t, uint64_t start, uint64_t len, int wide)
{
	iova_path p;
	uint64_t place;
	uint32_t i;

	path_down(t, &p, start);
	i = leaf_seek(p.leaf, start);
	if (__builtin_expect(start == 0 && t->keep_zero, 0)) {
		uint64_t gap = leaf_gap(p.leaf, 0);

		if (!(p.leaf->fixed & 1) || len - 1 > gap)
			return IOVA_TAKEN;
		return tree_set_zero(t, len, 0);
	}
	if (!gap_place(p.leaf, i, len, 0, start, ~(uint64_t)0, &place) || place != start)
		return IOVA_TAKEN;
	return tree_put(t, &p, i, start, len, wide);
}
IOVA_EACH_WIDTH(int, iova_insert, (iova_tree *t, uint64_t start, uint64_t len), t, start, len)

/* Own the place that the policy chooses for len units aligned to 1 << shift in [low, high]. */
IOVA_INLINE int iova_allocate_any(iova_tree *t, uint64_t len, int shift, int policy, uint64_t low,
			   uint64_t high, uint64_t *place, int wide)
{
	iova_path p;
	uint32_t i, k = t->class_of[shift];
	int found;

	if (__builtin_expect(shift && !k, 0)) {
		if (!tree_class(t, shift))
			return IOVA_NOMEM;
		k = t->class_of[shift];
	}
	if (policy == IOVA_FIRST && low == 0 && high == t->top - 1) {
		/* PERF: without a window there is no edge to look at. */
		uint32_t root = plane_first(plane_of(t->root, (int)k), len, 0);

		if (root == IOVA_LANES)
			return IOVA_NONE;
		p.node[t->height] = t->root;
		p.at[t->height] = root;
		path_down_to(&p, t->height, (int)k, len, 0);
		i = leaf_first(p.leaf, t->mask[k], len, 0, wide);
		*place = (leaf_stop(p.leaf, i) + t->mask[k]) & ~t->mask[k];
		return tree_put(t, &p, i, *place, len, wide);
	}
	if (policy == IOVA_FIRST) {
		found = BY_WIDTH(choose_first, t, &p, &i, len, (int)k, low, high, place);
	} else if (policy == IOVA_LAST) {
		found = BY_WIDTH(choose_last, t, &p, &i, len, (int)k, low, high, place);
	} else {
		if (!t->sizes && !sizes_build(t))
			return IOVA_NOMEM;
		found = BY_WIDTH(choose_best, t, &p, &i, len, (int)k, low, high, place);
	}
	return found ? tree_put(t, &p, i, *place, len, wide) : IOVA_NONE;
}
IOVA_EACH_WIDTH(int, iova_allocate, (iova_tree *t, uint64_t len, int shift, int policy, uint64_t low, uint64_t high, uint64_t *place), t, len, shift, policy, low, high, place)

/* Take out the entry at start; *len is 0 for any length, and its length afterwards. */
IOVA_INLINE int iova_release_any(iova_tree *t, uint64_t start, uint64_t *len, int wide)
{
	iova_path p;
	uint64_t held;
	uint32_t i;

	path_down(t, &p, start);
	i = leaf_seek(p.leaf, start);
	if (leaf_start(p.leaf, i) != start || (p.leaf->fixed >> i & 1))
		return IOVA_NONE;
	held = leaf_stop(p.leaf, i) - start;
	if (*len && *len != held)
		return IOVA_OTHER;
	*len = held;
	if (__builtin_expect(start == 0 && t->keep_zero, 0))
		return tree_set_zero(t, 1, 1);
	return tree_cut(t, &p, i, wide);
}
IOVA_EACH_WIDTH(int, iova_release, (iova_tree *t, uint64_t start, uint64_t *len), t, start, len)

/* The last entry that starts at x or below. */
IOVA_INLINE int iova_find_any(const iova_tree *t, uint64_t x, iova_entry *entry, int wide)
{
	iova_path p;
	uint32_t i;

	path_down(t, &p, x);
	i = leaf_seek(p.leaf, x);
	entry->start = leaf_start(p.leaf, i);
	entry->len = leaf_stop(p.leaf, i) - entry->start;
	entry->fixed = (int)(p.leaf->fixed >> i & 1);
	return (void)wide, entry->fixed;
}
IOVA_EACH_WIDTH(int, iova_find, (const iova_tree *t, uint64_t x, iova_entry *entry), t, x, entry)

enum { IOVA_ABREAST = 16 };

/* Whether the leaves are too many for the nearest caches, so that calling them early pays. */
static int iova_far(const iova_tree *t)
{
	return t->blocks.bytes > IOVA_NEAR;
}

/* Call the leaves into the cache that hold the addresses of items [from, from + IOVA_ABREAST) of a
 * batch: all abreast, so that their misses do not wait for one another.
 */
IOVA_INLINE int iova_call_any(const iova_tree *t, const uint64_t *x, size_t count, size_t from,
			      int shift, int wide)
{
	size_t n = count - from < IOVA_ABREAST ? count - from : IOVA_ABREAST;
	const void *node[IOVA_ABREAST];

	for (size_t j = 0; j < n; j++)
		node[j] = t->root;
	for (int level = t->height; level; level--) {
		for (size_t j = 0; j < n; j++) {
			const iova_inner *in = node[j];
			const char *below = in->child[inner_seek(in, x[from + j] >> shift)];

			node[j] = below;
			for (size_t line = 0; line < (level == 1 ? sizeof(iova_leaf) : 128); line += 64)
				__builtin_prefetch(below + line);
		}
	}
	__asm__ volatile(""); /* or GCC takes this for a function of no effect and leaves it out */
	return (void)wide, IOVA_OK;
}
IOVA_EACH_WIDTH(int, iova_call,
		(const iova_tree *t, const uint64_t *x, size_t count, size_t from, int shift),
		t, x, count, from, shift)

/* Look up many addresses: first and last address of the entry that holds each, else 1 and 0.
 * Sixteen abreast, level by level, so that the misses of one do not wait for those of another.
 */
IOVA_INLINE int iova_find_many_any(const iova_tree *t, const uint64_t *x, size_t count, int shift,
				   uint64_t *starts, uint64_t *lasts, int wide)
{
	uint64_t low = ((uint64_t)1 << shift) - 1;

	for (size_t at = 0; at < count; at += IOVA_ABREAST) {
		size_t n = count - at < IOVA_ABREAST ? count - at : IOVA_ABREAST;
		const void *node[IOVA_ABREAST];
		uint32_t place[IOVA_ABREAST];

		for (size_t j = 0; j < n; j++)
			node[j] = t->root;
		for (int level = t->height; level; level--) {
			for (size_t j = 0; j < n; j++) {
				const iova_inner *in = node[j];

				place[j] = inner_seek(in, x[at + j] >> shift);
				__builtin_prefetch(in->child + place[j]);
			}
			for (size_t j = 0; j < n; j++) {
				node[j] = ((const iova_inner *)node[j])->child[place[j]];
				__builtin_prefetch(node[j]);
			}
		}
		/* Three lines of a leaf are enough: the first says which of the others. */
		for (size_t j = 0; j < n; j++) {
			const iova_leaf *l = node[j];
			int32_t d = leaf_distance(l, x[at + j] >> shift);

			place[j] = 16 * (uint32_t)((l->line[0] <= d) + (l->line[1] <= d) +
						   (l->line[2] <= d));
			__builtin_prefetch(l->next + place[j]);
			__builtin_prefetch(l->stop + place[j]);
		}
		for (size_t j = 0; j < n; j++) {
			const iova_leaf *l = node[j];
			uint64_t unit = x[at + j] >> shift, start, len;
			int32_t d = leaf_distance(l, unit);
			uint32_t i = place[j] + BY_WIDTH(atmost, l->next + place[j], d);
			int none;

			start = leaf_start(l, i);
			len = leaf_stop(l, i) - start;
			none = (l->fixed >> i & 1) || unit - start >= len;
			starts[at + j] = none ? 1 : start << shift;
			lasts[at + j] = none ? 0 : ((start + (len - 1)) << shift) | low;
		}
	}
	return IOVA_OK;
}
IOVA_EACH_WIDTH(int, iova_find_many,
		(const iova_tree *t, const uint64_t *x, size_t count, int shift, uint64_t *starts,
		 uint64_t *lasts),
		t, x, count, shift, starts, lasts)

/* Mark the entry at start as fixed, or as an allocation: a range that is parked is neither free
 * nor owned. *len is 0 for any length, and its length afterwards.
 */
IOVA_INLINE int iova_mark_any(iova_tree *t, uint64_t start, uint64_t *len, int fixed, int wide)
{
	iova_path p;
	uint64_t held;
	uint32_t i;

	path_down(t, &p, start);
	i = leaf_seek(p.leaf, start);
	if (leaf_start(p.leaf, i) != start || (int)(p.leaf->fixed >> i & 1) == fixed || start == 0)
		return IOVA_NONE;
	held = leaf_stop(p.leaf, i) - start;
	if (*len && *len != held)
		return IOVA_OTHER;
	*len = held;
	p.leaf->fixed ^= (uint64_t)1 << i;
	return (void)wide, IOVA_OK;
}
IOVA_EACH_WIDTH(int, iova_mark, (iova_tree *t, uint64_t start, uint64_t *len, int fixed), t, start,
		len, fixed)

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

#include "ranges.h"
#include "check.h"

/* Bytes that the tree holds. */
static uint64_t iova_bytes(const iova_tree *t)
{
	return sizeof *t + t->blocks.bytes + t->inners.bytes +
	       (t->sizes ? sizeof *t->sizes + t->sizes->inners.bytes : 0);
}

/* Let the tree have only so many more pieces of memory: tests see what happens then. */
static void iova_limit(iova_tree *t, uint64_t chunks)
{
	t->fail_after = chunks;
}

#endif
