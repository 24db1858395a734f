/* SPDX-License-Identifier: Apache-2.0
 *
 * The tree, for one kind of CPU: its shapes, and what is included below. plain.c and wide.c include
 * this, each with the vectors it may use.
 *
 * Shape. A B+tree of the entries by address. A leaf keeps up to 64 of them as 32-bit distances
 * from its first, so that eight bytes hold an entry and one vector loop looks at all gaps of a
 * leaf; an entry that lies or reaches 2^31 units away is the first or the last of its leaf. Inner
 * nodes keep, for each child, the largest size that can be had below it: one plane of numbers for
 * each alignment in use. So a search goes straight down to the first, or last, gap that fits,
 * at any alignment, from any address on.
 *
 * What costs upkeep exists from the moment it is first needed, and is then kept: the plane of an
 * alignment, or of sizes from 2^31 - 1 units on; the plane of sums that counts what is free in a
 * window; the tree of gaps by size that best fit searches, and the zones that it searches in a window.
 * Each is built in one pass over the entries.
 */
#include <stdlib.h>
#include <string.h>

#include "tree.h"

#if defined(__GNUC__)
#define IOVA_INLINE static inline __attribute__((always_inline, unused))
#define IOVA_RARE static __attribute__((noinline, cold))
#else
#define IOVA_INLINE static inline
#define IOVA_RARE static
#endif

enum {
	IOVA_LANES = 64, /* entries of a leaf, children of an inner node */
	IOVA_DEEP = 16, /* levels: a node of three or more halves what is above */
	IOVA_FILL = 56, /* children that bulk building gives a node */
	IOVA_RUN = 7, /* neighbouring leaves that are dealt anew together */
	IOVA_SHARE = 58, /* a run of leaves with more, on average, gets one leaf more */
	IOVA_JOIN = 57, /* a run of leaves that would not have more, on average, gets one leaf less */
	IOVA_SPARSE = 16, /* a leaf that has come down to a multiple of that looks for it */
	IOVA_SUM = 71, /* number of the plane of sums; the others are alignment classes */
	IOVA_MORE = 72,
	IOVA_NEAR = 4 << 20 /* bytes of leaves that the nearest caches hold anyway */
};
#define IOVA_FAR 0x7fffffff /* a distance of 2^31 - 1 units or more */

/* One key for each child, and of each eight of them the first. */
typedef struct {
	int64_t top[8];
	int64_t at[IOVA_LANES];
} iova_keys;

/* One number for each child, and of each eight of them the largest. */
typedef struct {
	uint64_t top[8];
	uint64_t at[IOVA_LANES];
} iova_plane;

/* The same, of numbers that are capped at IOVA_FAR: one vector holds eight of them. */
typedef struct {
	int32_t top[8];
	int32_t at[IOVA_LANES];
} iova_near;

typedef struct {
	uint64_t base; /* where entry 0 starts */
	uint64_t above; /* where the first entry of the next leaf starts, or top */
	uint64_t tail; /* where the last entry stops */
	uint64_t fixed; /* bit i: entry i is fixed */
	uint32_t count;
	int32_t line[3]; /* next[15], next[31], next[47]: which cache line of `next` to look at */
	uint32_t spare[3];
	int32_t zero; /* read as the lane before the first: where entry 0 starts */
	/* From base on, capped at IOVA_FAR; lanes beyond the last are IOVA_FAR, which makes no gap. */
	int32_t next[IOVA_LANES]; /* where entry i + 1 starts */
	int32_t stop[IOVA_LANES]; /* where entry i stops */
} iova_leaf;

typedef struct {
	iova_keys key; /* where the first entry below a child starts */
	iova_near max; /* largest gap below a child */
	void *child[IOVA_LANES];
	iova_plane **more; /* planes of the other classes and of the sums, by number */
	uint32_t count;
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

struct iova_tree {
	iova_inner *root;
	int height; /* levels of inner nodes, 1 or more */
	int classes; /* alignments in use; number 0 is one unit, and sizes below IOVA_FAR */
	uint64_t mask[IOVA_LANES + 1]; /* alignment - 1, by class */
	uint8_t class_of[IOVA_LANES]; /* by log2 of the alignment: a class of all sizes, or 0 */
	int sums; /* the plane of sums exists */
	int upkeep; /* there is, or was, more than plane 0 to keep true */
	int keep_zero; /* the entry at 0 is the unit that must not be chosen */
	uint64_t top;
	struct iova_sizes *sizes; /* the gaps by size, or NULL */
	iova_pool blocks; /* leaves, planes, lists of planes */
	iova_pool inners;
	uint64_t fail_after; /* chunks that may still be had: tests make it small */
};

#include "lanes.h"
#include "leaf.h"
#include "inner.h"
#include "shape.h"
#include "sizes.h"
#include "zones.h"
#include "change.h"
#include "search.h"
#include "best.h"

/* --- what the engine calls --- */

/* Own [start, start + len) if it is free. */
static int iova_insert(iova_tree *t, uint64_t start, uint64_t len)
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
	return tree_put(t, &p, i, start, len);
}

/* The first gap of all that fits: there is no edge of a window to look at. */
IOVA_INLINE int allocate_first(iova_tree *t, uint64_t len, int k, uint64_t mask, uint64_t *place)
{
	iova_path p;
	uint64_t at;
	uint32_t i;

	if (!groups_least(t->root, k, len))
		return IOVA_NONE;
	i = inner_hit(t->root, k, len);
	p.node[t->height] = t->root;
	p.at[t->height] = i;
	path_down_to(&p, t->height, k, len, 0);
	i = leaf_first(p.leaf, mask, len, 0);
	at = (leaf_stop(p.leaf, i) + mask) & ~mask;
	*place = at;
	return tree_put(t, &p, i, at, len);
}

static __attribute__((noinline)) int allocate_any(iova_tree *t, uint64_t len, int shift, int policy,
						  uint64_t low, uint64_t high, uint64_t *place)
{
	iova_path p;
	uint32_t i, k = 0;
	int found;

	if (shift || len >= IOVA_FAR) {
		if (__builtin_expect(!t->class_of[shift], 0) && !tree_class(t, shift))
			return IOVA_NOMEM;
		k = t->class_of[shift];
	}
	if (policy == IOVA_FIRST && low == 0 && high == t->top - 1)
		return allocate_first(t, len, (int)k, t->mask[k], place);
	if (policy == IOVA_FIRST) {
		found = choose_first(t, &p, &i, len, (int)k, low, high, place);
	} else if (policy == IOVA_LAST) {
		found = choose_last(t, &p, &i, len, (int)k, low, high, place);
	} else {
		if (!t->sizes && !sizes_build(t))
			return IOVA_NOMEM;
		found = choose_best(t, &p, &i, len, (int)k, low, high, place);
	}
	return found ? tree_put(t, &p, i, *place, len) : IOVA_NONE;
}

/* PERF: what is asked for most is compiled by itself, with the numbers that it has. */
static __attribute__((noinline)) int allocate_plain(iova_tree *t, uint64_t len, uint64_t *place)
{
	return allocate_first(t, len, 0, 0, place);
}

/* Own the place that the policy chooses for len units aligned to 1 << shift in [low, high]. */
static int iova_allocate(iova_tree *t, uint64_t len, int shift, int policy, uint64_t low,
			 uint64_t high, uint64_t *place)
{
	if (!(shift | policy | low) && high == t->top - 1 && len < IOVA_FAR)
		return allocate_plain(t, len, place);
	return allocate_any(t, len, shift, policy, low, high, place);
}

/* Take out the entry at start; *len is 0 for any length, and its length afterwards. */
static int iova_release(iova_tree *t, uint64_t start, uint64_t *len)
{
	lanes below[IOVA_LANES / IOVA_WIDTH];
	iova_path p;
	uint64_t held;
	uint32_t i;

	path_down(t, &p, start);
	i = leaf_seek_lanes(p.leaf, start, below);
	if (leaf_start(p.leaf, i) != start || (p.leaf->fixed >> i & 1))
		return IOVA_NONE;
	held = leaf_stop(p.leaf, i) - start;
	if (*len && *len != held)
		return IOVA_OTHER;
	*len = held;
	if (__builtin_expect(start == 0 && t->keep_zero, 0))
		return tree_set_zero(t, 1, 1);
	return tree_cut(t, &p, i, start, held, below);
}

/* The last entry that starts at x or below. */
static void iova_find(const iova_tree *t, uint64_t x, iova_entry *entry)
{
	iova_path p;
	uint32_t i;

	path_down(t, &p, x);
	i = leaf_seek(p.leaf, x);
	entry->start = leaf_start(p.leaf, i);
	entry->len = leaf_stop(p.leaf, i) - entry->start;
	entry->fixed = (int)(p.leaf->fixed >> i & 1);
}

/* Call the leaves into the cache that hold the addresses of items [from, from + IOVA_ABREAST) of a
 * batch: all abreast, so that their misses do not wait for one another.
 */
static void iova_call(const iova_tree *t, const uint64_t *x, size_t count, size_t from,
		      int shift)
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
}

/* Look up many addresses: first and last address of the entry that holds each, else 1 and 0.
 * Sixteen abreast, level by level, so that the misses of one do not wait for those of another.
 */
static void iova_find_many(const iova_tree *t, const uint64_t *x, size_t count, int shift,
			   uint64_t *starts, uint64_t *lasts)
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
			uint32_t i = place[j] + atmost16(l->next + place[j], d);
			int none;

			start = leaf_start(l, i);
			len = leaf_stop(l, i) - start;
			none = (l->fixed >> i & 1) || unit - start >= len;
			starts[at + j] = none ? 1 : start << shift;
			lasts[at + j] = none ? 0 : ((start + (len - 1)) << shift) | low;
		}
	}
}

/* Mark the entry at start as fixed, or as an allocation: a range that is parked is neither free
 * nor owned. *len is 0 for any length, and its length afterwards.
 */
static int iova_mark(iova_tree *t, uint64_t start, uint64_t *len, int fixed)
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
	return IOVA_OK;
}
