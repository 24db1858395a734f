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
#if defined(__GNUC__) && !defined(__clang__)
/* Vectors never cross a call that is not inlined. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#ifdef IOVA_WIDTH

/* What was included above for one width: `wide` lanes at once, in whatever registers the target
 * has for them.
 */
typedef int32_t V(lanes) __attribute__((vector_size(4 * IOVA_WIDTH)));
typedef int32_t V(lanes_at) __attribute__((vector_size(4 * IOVA_WIDTH), aligned(4), may_alias));

IOVA_INLINE V(lanes) V(load)(const void *lanes)
{
	return *(const V(lanes_at) *)lanes;
}

IOVA_INLINE void V(store)(void *lanes, V(lanes) v)
{
	*(V(lanes_at) *)lanes = v;
}

IOVA_INLINE V(lanes) V(all)(int32_t value)
{
	V(lanes) v = { value };

#if IOVA_WIDTH == 8
	return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0);
#else
	return __builtin_shufflevector(v, v, 0, 0, 0, 0);
#endif
}

IOVA_INLINE V(lanes) V(pick)(V(lanes) mask, V(lanes) yes, V(lanes) no)
{
	return (yes & mask) | (no & ~mask);
}

IOVA_INLINE V(lanes) V(larger)(V(lanes) a, V(lanes) b)
{
	return V(pick)(a > b, a, b);
}

/* The largest of the numbers. */
IOVA_INLINE int32_t V(largest)(V(lanes) v)
{
#if IOVA_WIDTH == 8
	v = V(larger)(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
	v = V(larger)(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
#else
	v = V(larger)(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
#endif
	return v[0] > v[1] ? v[0] : v[1];
}

/* How many of 16 ascending numbers are at most x. */
IOVA_INLINE uint32_t V(atmost)(const int32_t *lanes, int32_t x)
{
	V(lanes) count = V(all)(0), most = V(all)(x);

	for (int c = 0; c < 16; c += IOVA_WIDTH)
		count -= V(load)(lanes + c) <= most;
#if IOVA_WIDTH == 8
	count += __builtin_shufflevector(count, count, 4, 5, 6, 7, 0, 1, 2, 3);
	count += __builtin_shufflevector(count, count, 2, 3, 0, 1, 6, 7, 4, 5);
#else
	count += __builtin_shufflevector(count, count, 2, 3, 0, 1);
#endif
	return (uint32_t)(count[0] + count[1]);
}

/* What the lanes tell of their gaps: exact but for the last of the leaf, of which it may be less.
 * The questions below are asked with a mask that is the constant 0 as well, so that the compiler
 * makes a plainer loop for the plainest alignment.
 */
IOVA_INLINE V(lanes) V(usable)(const iova_leaf *l, int c, int32_t mask)
{
	V(lanes) stop = V(load)(l->stop + c), gap = V(load)(l->next + c) - stop, pad;

	if (!mask)
		return gap;
	pad = -(stop + (int32_t)(l->base & IOVA_FAR)) & mask;
	return (gap - pad) & (gap > pad);
}

/* The first lane from `from` on with `need`, or IOVA_LANES. */
IOVA_INLINE uint32_t V(lanes_first)(const iova_leaf *l, int32_t mask, int32_t need, uint32_t from)
{
	V(lanes) found = V(all)(-IOVA_LANES), least = V(all)(need - 1);

	/* Downwards, so that the lowest hit of each lane is the one that stays. */
#pragma GCC unroll 16
	for (int c = IOVA_LANES - IOVA_WIDTH; c >= 0; c -= IOVA_WIDTH) {
		V(lanes) hit = V(usable)(l, c, mask) > least, number = V(load)(iova_number + c);

		if (from)
			hit &= number >= V(all)((int32_t)from);
		found = V(pick)(hit, -number, found);
	}
	return (uint32_t)-V(largest)(found);
}

/* One more than the last lane below `below` with `need`, or 0. */
IOVA_INLINE uint32_t V(lanes_last)(const iova_leaf *l, int32_t mask, int32_t need, uint32_t below)
{
	V(lanes) found = V(all)(0), least = V(all)(need - 1);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		V(lanes) hit = V(usable)(l, c, mask) > least, number = V(load)(iova_number + c);

		hit &= number < V(all)((int32_t)below);
		found = V(pick)(hit, number + 1, found);
	}
	return (uint32_t)V(largest)(found);
}

IOVA_INLINE int32_t V(lanes_max)(const iova_leaf *l, int32_t mask)
{
	V(lanes) most = V(all)(0);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH)
		most = V(larger)(most, V(usable)(l, c, mask));
	return V(largest)(most);
}

/* Put an entry above entry i, and return the largest gap that the lanes then tell of.
 * SAFETY: what is read before lane 0 is the header of the leaf, or the other half of its lanes,
 * and is not used.
 * PERF: all in one pass and in vectors, for a store of one lane would stall the next load of it.
 */
IOVA_INLINE int32_t V(lanes_open)(iova_leaf *l, uint32_t i, int32_t start, int32_t stop)
{
	V(lanes) at = V(all)((int32_t)i), at_next = V(all)((int32_t)i + 1), most = V(all)(0);

#pragma GCC unroll 16
	for (int c = IOVA_LANES - IOVA_WIDTH; c >= 0; c -= IOVA_WIDTH) {
		const char *next_lanes = (const char *)(l->next + c);
		const char *stop_lanes = (const char *)(l->stop + c);
		V(lanes) n = V(load)(next_lanes), s = V(load)(stop_lanes);
		V(lanes) number = V(load)(iova_number + c);

		n = V(pick)(number == at, V(all)(start), n);
		n = V(pick)(number > at, V(load)(next_lanes - 4), n);
		s = V(pick)(number == at_next, V(all)(stop), s);
		s = V(pick)(number > at_next, V(load)(stop_lanes - 4), s);
		V(store)(l->next + c, n);
		V(store)(l->stop + c, s);
		most = V(larger)(most, n - s);
	}
	return V(largest)(most);
}

/* Move the lanes above `from` down by one, onto it; the last becomes IOVA_FAR. */
IOVA_INLINE void V(lanes_down)(int32_t *lanes, uint32_t from)
{
	V(lanes) at = V(all)((int32_t)from);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		V(lanes) kept = V(load)(lanes + c), moved;

		if (c + IOVA_WIDTH < IOVA_LANES)
			moved = V(load)(lanes + c + 1);
		else
#if IOVA_WIDTH == 8
			moved = __builtin_shufflevector(kept, V(all)(IOVA_FAR), 1, 2, 3, 4, 5, 6, 7, 8);
#else
			moved = __builtin_shufflevector(kept, V(all)(IOVA_FAR), 1, 2, 3, 4);
#endif
		V(store)(lanes + c, V(pick)(at > V(load)(iova_number + c), kept, moved));
	}
}

/* The same for 32 numbers of 64 bits, which are 64 lanes in pairs: put one in at `from`. */
IOVA_INLINE void V(pairs_open)(void *pairs, uint32_t from, uint64_t value)
{
	V(lanes) at = V(all)((int32_t)from), here;
	uint64_t copies[IOVA_WIDTH / 2];

	for (int i = 0; i < IOVA_WIDTH / 2; i++)
		copies[i] = value;
	here = V(load)(copies);
#pragma GCC unroll 16
	for (int c = IOVA_LANES - IOVA_WIDTH; c >= 0; c -= IOVA_WIDTH) {
		char *lanes = (char *)pairs + 4 * c;
		V(lanes) number = V(load)(iova_pair_number + c), kept = V(load)(lanes);

		kept = V(pick)(number == at, here, kept);
		V(store)(lanes, V(pick)(number > at, V(load)(lanes - 8), kept));
	}
}

/* Take one out at `from`; what comes into the last place is not defined. */
IOVA_INLINE void V(pairs_close)(void *pairs, uint32_t from)
{
	V(lanes) at = V(all)((int32_t)from);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		char *lanes = (char *)pairs + 4 * c;
		V(lanes) kept = V(load)(lanes), moved = V(load)(lanes + 8);

		V(store)(lanes, V(pick)(at > V(load)(iova_pair_number + c), kept, moved));
	}
}

#elif !defined(VMM_IOVA_TREE_H)
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
	IOVA_SHARE = 50, /* a leaf with more takes no entries from a full neighbour */
	IOVA_JOIN = 60, /* two leaves with more together stay two */
	IOVA_SPARSE = 32, /* a leaf with more does not look for one to join */
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
	iova_plane **more; /* planes of the other alignments and of the sums, by number */
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

/* --- blocks --- */

IOVA_RARE int pool_grow(iova_tree *t, iova_pool *p, size_t wanted)
{
	size_t count = p->bytes / p->size / 32 + 8;
	char *chunk;

	if (count > 1024)
		count = 1024;
	if (count < wanted)
		count = wanted;
	if (t->fail_after == 0)
		return 0;
	t->fail_after--;
	/* What is left of the last chunk goes to the free list. */
	while (p->left) {
		*(void **)p->fresh = p->free;
		p->free = p->fresh;
		p->fresh += p->size;
		p->left--;
	}
	if (posix_memalign((void **)&chunk, 64, 64 + count * p->size))
		return 0;
	*(void **)chunk = p->chunks;
	p->chunks = chunk;
	p->fresh = chunk + 64;
	p->left = count;
	p->spare += count;
	p->bytes += 64 + count * p->size;
	return 1;
}

/* Make sure that the next `count` blocks can be had. */
IOVA_INLINE int pool_reserve(iova_tree *t, iova_pool *p, size_t count)
{
	return p->spare >= count || pool_grow(t, p, count - p->spare);
}

static void *pool_take(iova_pool *p)
{
	void *block = p->free;

	p->spare--;
	if (block) {
		p->free = *(void **)block;
		return block;
	}
	block = p->fresh;
	p->fresh += p->size;
	p->left--;
	return block;
}

static void pool_give(iova_pool *p, void *block)
{
	*(void **)block = p->free;
	p->free = block;
	p->spare++;
}

static void pool_clear(iova_pool *p)
{
	while (p->chunks) {
		void *next = *(void **)p->chunks;

		free(p->chunks);
		p->chunks = next;
	}
}

/* --- leaves --- */

IOVA_INLINE int32_t near(uint64_t distance)
{
	return distance < IOVA_FAR ? (int32_t)distance : IOVA_FAR;
}

IOVA_INLINE uint64_t leaf_start(const iova_leaf *l, uint32_t i)
{
	return i ? l->base + (uint64_t)l->next[i - 1] : l->base;
}

IOVA_INLINE uint64_t leaf_stop(const iova_leaf *l, uint32_t i)
{
	return i + 1 < l->count ? l->base + (uint64_t)l->stop[i] : l->tail;
}

IOVA_INLINE uint64_t leaf_next(const iova_leaf *l, uint32_t i)
{
	return i + 1 < l->count ? l->base + (uint64_t)l->next[i] : l->above;
}

/* Units of the gap above entry i. The one of all 2^64 units counts one less. */
IOVA_INLINE uint64_t leaf_gap(const iova_leaf *l, uint32_t i)
{
	uint64_t gap;

	if (i + 1 < l->count)
		return (uint64_t)(l->next[i] - l->stop[i]);
	gap = l->above - l->tail;
	/* PERF: no branch, for whether a gap is 0 is a coin toss. */
	return gap - ((l->above | l->tail | l->base) == 0 && l->count == 1);
}

/* Units of a gap that are left from its first aligned one on. */
IOVA_INLINE uint64_t usable(uint64_t stop, uint64_t gap, uint64_t mask)
{
	uint64_t pad = (0 - stop) & mask;

	return gap > pad ? gap - pad : 0;
}

IOVA_INLINE uint64_t leaf_usable(const iova_leaf *l, uint32_t i, uint64_t mask)
{
	return usable(leaf_stop(l, i), leaf_gap(l, i), mask);
}

IOVA_INLINE void leaf_set_lines(iova_leaf *l)
{
	for (int i = 0; i < 3; i++)
		l->line[i] = l->next[16 * i + 15];
}

/* INVARIANT: two entries with the same start (a seam and what begins at it) share a leaf, so a
 * distance of 0 can only be the whole space of 2^64 units.
 */
IOVA_INLINE void leaf_set_above(iova_leaf *l, uint64_t above)
{
	uint64_t distance = above - l->base;

	l->above = above;
	l->next[l->count - 1] = distance ? near(distance) : IOVA_FAR;
	leaf_set_lines(l);
}

IOVA_INLINE void leaf_set_tail(iova_leaf *l, uint64_t tail)
{
	uint64_t distance = tail - l->base;

	l->tail = tail;
	l->stop[l->count - 1] = distance || l->count == 1 ? near(distance) : IOVA_FAR;
}

/* How far x lies from the base, for comparing with the lanes. */
IOVA_INLINE int32_t leaf_distance(const iova_leaf *l, uint64_t x)
{
	uint64_t distance = x - l->base;

	return distance < IOVA_FAR ? (int32_t)distance : IOVA_FAR - 1;
}

/* The last entry that starts at x or below. */
IOVA_INLINE uint32_t leaf_seek(const iova_leaf *l, uint64_t x)
{
	int32_t d = leaf_distance(l, x), count = 0;

	for (int i = 0; i < IOVA_LANES; i++)
		count += l->next[i] <= d;
	return (uint32_t)count;
}

/* The loops over the lanes of a leaf stand below, after `#ifdef IOVA_WIDTH`: this file includes
 * itself once for vectors of four lanes, which every target has, and on x86-64 once for eight,
 * which run only where the CPU has them.
 */
#define EIGHT(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
static const int32_t iova_number[IOVA_LANES] __attribute__((aligned(64))) = {
	EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
};

#define PAIRS(n) n, n, n + 1, n + 1, n + 2, n + 2, n + 3, n + 3
static const int32_t iova_pair_number[IOVA_LANES] __attribute__((aligned(64))) = {
	PAIRS(0), PAIRS(4), PAIRS(8), PAIRS(12), PAIRS(16), PAIRS(20), PAIRS(24), PAIRS(28)
};

#define IOVA_WIDTH 4
#define V(name) name##_4
#include "_tree.h"
#undef V
#undef IOVA_WIDTH
#ifdef IOVA_TWO_WIDTHS
#define IOVA_WIDTH 8
#define V(name) name##_8
#include "_tree.h"
#undef V
#undef IOVA_WIDTH
#define BY_WIDTH(name, ...) (wide ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#else
#define BY_WIDTH(name, ...) ((void)wide, name##_4(__VA_ARGS__))
#endif

/* The first entry from `from` on whose gap has `need` usable units, or IOVA_LANES. */
IOVA_INLINE uint32_t leaf_first(const iova_leaf *l, uint64_t mask, uint64_t need, uint32_t from,
				int wide)
{
	uint32_t last = l->count - 1, i = IOVA_LANES;

	if (mask > IOVA_FAR) {
		for (i = from; i < last; i++)
			if (leaf_usable(l, i, mask) >= need)
				return i;
	} else if (need <= IOVA_FAR) {
		i = mask ? BY_WIDTH(lanes_first, l, (int32_t)mask, (int32_t)need, from)
			 : BY_WIDTH(lanes_first, l, 0, (int32_t)need, from);
		if (i < IOVA_LANES)
			return i;
	}
	return last >= from && leaf_usable(l, last, mask) >= need ? last : IOVA_LANES;
}

/* The last entry below `below` whose gap has `need` usable units, or IOVA_LANES. */
IOVA_INLINE uint32_t leaf_last(const iova_leaf *l, uint64_t mask, uint64_t need, uint32_t below,
			       int wide)
{
	uint32_t last = l->count - 1, i = 0;

	if (below > last && leaf_usable(l, last, mask) >= need)
		return last;
	if (mask > IOVA_FAR) {
		for (i = below < last ? below : last; i > 0; i--)
			if (leaf_usable(l, i - 1, mask) >= need)
				break;
	} else if (need <= IOVA_FAR) {
		i = mask ? BY_WIDTH(lanes_last, l, (int32_t)mask, (int32_t)need, below)
			 : BY_WIDTH(lanes_last, l, 0, (int32_t)need, below);
	}
	return i ? i - 1 : IOVA_LANES;
}

/* The largest usable size of the leaf. */
IOVA_INLINE uint64_t leaf_max_any(const iova_leaf *l, uint64_t mask, int wide)
{
	uint64_t last = leaf_usable(l, l->count - 1, mask), most = 0;

	if (mask > IOVA_FAR) {
		for (uint32_t i = 0; i + 1 < l->count; i++)
			if (leaf_usable(l, i, mask) > most)
				most = leaf_usable(l, i, mask);
	} else {
		most = (uint64_t)(mask ? BY_WIDTH(lanes_max, l, (int32_t)mask)
				       : BY_WIDTH(lanes_max, l, 0));
	}
	return last > most ? last : most;
}
IOVA_EACH_WIDTH(uint64_t, leaf_max, (const iova_leaf *l, uint64_t mask), l, mask)

/* Units free in the leaf. */
static uint64_t leaf_sum(const iova_leaf *l)
{
	uint64_t sum = leaf_gap(l, l->count - 1);

	for (uint32_t i = 0; i + 1 < l->count; i++)
		sum += (uint64_t)(l->next[i] - l->stop[i]);
	return sum;
}

/* Write the entries anew, from a list of them. */
static void leaf_write(iova_leaf *l, const iova_entry *e, uint32_t count, uint64_t above)
{
	for (uint32_t i = 0; i < IOVA_LANES; i++)
		l->next[i] = l->stop[i] = IOVA_FAR;
	l->count = count;
	l->base = e[0].start;
	l->fixed = 0;
	for (uint32_t i = 0; i < count; i++) {
		l->fixed |= (uint64_t)(e[i].fixed != 0) << i;
		l->stop[i] = near(e[i].start + e[i].len - l->base);
		if (i)
			l->next[i - 1] = (int32_t)(e[i].start - l->base);
	}
	leaf_set_tail(l, e[count - 1].start + e[count - 1].len);
	leaf_set_above(l, above);
}

static void leaf_read(const iova_leaf *l, iova_entry *e)
{
	for (uint32_t i = 0; i < l->count; i++) {
		e[i].start = leaf_start(l, i);
		e[i].len = leaf_stop(l, i) - e[i].start;
		e[i].fixed = (int)(l->fixed >> i & 1);
	}
}

/* The entries of one leaf or of two neighbours, taken out to be dealt anew. Distances are from the
 * base of the first.
 */
typedef struct {
	uint64_t base, above, tail;
	uint64_t fixed[2];
	uint32_t count;
	/* One leaf more than there are entries for: a leaf is written from any of them in one go. */
	int32_t next[3 * IOVA_LANES];
	int32_t stop[3 * IOVA_LANES];
} iova_run;

/* Take a leaf in; 0 when it lies too far from the one that is in already. */
static int run_add(iova_run *r, const iova_leaf *l)
{
	uint32_t n = r->count, delta = 0;

	if (n) {
		if (leaf_start(l, l->count - 1) - r->base >= IOVA_FAR ||
		    r->tail - r->base >= IOVA_FAR)
			return 0;
		delta = (uint32_t)(l->base - r->base);
		r->next[n - 1] = (int32_t)delta;
		r->stop[n - 1] = (int32_t)(r->tail - r->base);
		r->fixed[0] |= n < 64 ? l->fixed << n : 0;
		r->fixed[1] = n < 64 ? l->fixed >> (64 - n) : l->fixed;
	} else {
		r->base = l->base;
		r->fixed[0] = l->fixed;
		r->fixed[1] = 0;
	}
	for (uint32_t i = 0; i < IOVA_LANES; i++) {
		r->next[n + i] = (int32_t)((uint32_t)l->next[i] + delta);
		r->stop[n + i] = (int32_t)((uint32_t)l->stop[i] + delta);
	}
	r->count = n + l->count;
	r->tail = l->tail;
	r->above = l->above;
	return 1;
}

/* Make a leaf of entries [from, from + count). */
static void run_write(const iova_run *r, iova_leaf *l, uint32_t from, uint32_t count)
{
	uint32_t first = from ? (uint32_t)r->next[from - 1] : 0, stop = from + count;

	l->base = r->base + first;
	l->count = count;
	l->fixed = from >= 64 ? r->fixed[1] >> (from - 64)
		   : from     ? r->fixed[0] >> from | r->fixed[1] << (64 - from)
			      : r->fixed[0];
	if (count < 64)
		l->fixed &= ((uint64_t)1 << count) - 1;
	for (uint32_t i = 0; i < IOVA_LANES; i++) {
		int32_t next = (int32_t)((uint32_t)r->next[from + i] - first);
		int32_t end = (int32_t)((uint32_t)r->stop[from + i] - first);

		l->next[i] = i < count ? next : IOVA_FAR;
		l->stop[i] = i < count ? end : IOVA_FAR;
	}
	leaf_set_tail(l, stop == r->count ? r->tail : r->base + (uint64_t)r->stop[stop - 1]);
	leaf_set_above(l, stop == r->count ? r->above : r->base + (uint64_t)r->next[stop - 1]);
}

/* Tell whether entries i - 1 and i start at one place: a seam and what begins at it. */
static int run_pair(const iova_run *r, uint32_t i)
{
	return r->next[i - 1] == (i > 1 ? r->next[i - 2] : 0);
}

/* --- inner nodes --- */

IOVA_INLINE iova_plane *plane_of(const iova_inner *n, int number)
{
	return number ? n->more[number] : (iova_plane *)&n->max;
}

IOVA_INLINE uint64_t max8(const uint64_t *v)
{
	uint64_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
	uint64_t c = v[4] > v[5] ? v[4] : v[5], d = v[6] > v[7] ? v[6] : v[7];

	a = a > b ? a : b;
	c = c > d ? c : d;
	return a > c ? a : c;
}

/* Bit i: v[i] is at least x. */
IOVA_INLINE unsigned least8(const uint64_t *v, uint64_t x)
{
	unsigned bits = 0;

#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		bits |= (unsigned)(v[i] >= x) << i;
	return bits;
}

/* The first of eight that is at least x, or 8. */
IOVA_INLINE uint32_t first8(const uint64_t *v, uint64_t x)
{
	uint32_t found = 8;

#pragma GCC unroll 8
	for (int i = 7; i >= 0; i--)
		found = v[i] >= x ? (uint32_t)i : found;
	return found;
}

IOVA_INLINE unsigned atmost8(const uint64_t *v, uint64_t x)
{
	unsigned count = 0;

	for (int i = 0; i < 8; i++)
		count += v[i] <= x;
	return count;
}

/* The last child whose first entry starts at x or below. */
IOVA_INLINE uint32_t inner_seek(const iova_inner *n, uint64_t x)
{
	unsigned group = atmost8(n->key.top, x);
	uint32_t i;

	group = group ? group - 1 : 0;
	i = 8 * group + atmost8(n->key.at + 8 * group, x);
	i = i < n->count ? i : n->count;
	return i ? i - 1 : 0;
}

/* The first child from `from` on that has `need`, or IOVA_LANES. */
IOVA_INLINE uint32_t plane_first(const iova_plane *p, uint64_t need, uint32_t from)
{
	uint32_t group = from / 8;
	unsigned bits;

	if (from == 0) {
		group = first8(p->top, need);
		return group == 8 ? IOVA_LANES : 8 * group + first8(p->at + 8 * group, need);
	}
	if (from >= IOVA_LANES)
		return IOVA_LANES;
	bits = from % 8 ? least8(p->at + 8 * group, need) & (0xffu << from % 8) : 0;
	if (!bits) {
		bits = least8(p->top, need) & (0xffu << (from + 7) / 8);
		bits &= 0xff;
		if (!bits)
			return IOVA_LANES;
		group = (uint32_t)__builtin_ctz(bits);
		bits = least8(p->at + 8 * group, need);
	}
	return 8 * group + (uint32_t)__builtin_ctz(bits);
}

/* The last child below `below` that has `need`, or IOVA_LANES. */
IOVA_INLINE uint32_t plane_last(const iova_plane *p, uint64_t need, uint32_t below)
{
	uint32_t group = below / 8;
	unsigned bits = below % 8 ? least8(p->at + 8 * group, need) & ((1u << below % 8) - 1) : 0;

	if (!bits) {
		bits = least8(p->top, need) & ((1u << group) - 1);
		if (!bits)
			return IOVA_LANES;
		group = 31 - (uint32_t)__builtin_clz(bits);
		bits = least8(p->at + 8 * group, need);
	}
	return 8 * group + 31 - (uint32_t)__builtin_clz(bits);
}

/* Bring the short lists of a node up to date with the long ones, from child `from` on. */
static void inner_index(const iova_tree *t, iova_inner *n, uint32_t from)
{
	for (uint32_t i = n->count; i < IOVA_LANES; i++) {
		n->key.at[i] = ~(uint64_t)0;
		n->child[i] = NULL;
	}
	for (uint32_t g = from / 8; g < 8; g++)
		n->key.top[g] = n->key.at[8 * g];
	for (int k = 0; k < t->classes; k++) {
		iova_plane *p = plane_of(n, k);

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
	for (int k = 0; k < t->classes; k++)
		memmove(plane_of(into, k)->at + to, plane_of(n, k)->at + from,
			count * sizeof *n->max.at);
	if (t->sums)
		memmove(into->more[IOVA_SUM]->at + to, n->more[IOVA_SUM]->at + from,
			count * sizeof *n->max.at);
}

/* Blocks that a new inner node takes beside itself. */
IOVA_INLINE size_t inner_blocks(const iova_tree *t)
{
	return t->classes > 1 || t->sums ? (size_t)t->classes + (size_t)t->sums : 0;
}

static iova_inner *inner_take(iova_tree *t)
{
	iova_inner *n = pool_take(&t->inners);

	n->count = 0;
	n->more = NULL;
	if (t->classes > 1 || t->sums) {
		n->more = pool_take(&t->blocks);
		memset(n->more, 0, IOVA_MORE * sizeof *n->more);
		for (int k = 1; k < t->classes; k++)
			n->more[k] = pool_take(&t->blocks);
		if (t->sums)
			n->more[IOVA_SUM] = pool_take(&t->blocks);
	}
	return n;
}

static void inner_give(iova_tree *t, iova_inner *n)
{
	if (n->more) {
		for (int k = 1; k <= IOVA_SUM; k++)
			if (n->more[k])
				pool_give(&t->blocks, n->more[k]);
		pool_give(&t->blocks, n->more);
	}
	pool_give(&t->inners, n);
}

/* What a parent keeps of a child, in plane number k. */
static uint64_t child_number(const iova_tree *t, int level, const void *child, int k)
{
	if (level == 1)
		return k == IOVA_SUM ? leaf_sum(child) : leaf_max(child, t->mask[k]);
	if (k == IOVA_SUM) {
		const iova_inner *n = child;
		uint64_t sum = 0;

		for (uint32_t i = 0; i < n->count; i++)
			sum += n->more[IOVA_SUM]->at[i];
		return sum;
	}
	return max8(plane_of(child, k)->top);
}

/* Note child i of a node at `level` with its key and numbers. The node's index is left stale. */
static void inner_note(const iova_tree *t, iova_inner *n, int level, uint32_t i, void *child)
{
	n->child[i] = child;
	n->key.at[i] = level == 1 ? ((iova_leaf *)child)->base : ((iova_inner *)child)->key.at[0];
	for (int k = 0; k < t->classes; k++)
		plane_of(n, k)->at[i] = child_number(t, level, child, k);
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
		uint32_t i = last ? plane_last(plane_of(in, k), need, IOVA_LANES)
				  : plane_first(plane_of(in, k), need, 0);

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
		const iova_plane *plane = plane_of(p->node[level], k);
		uint32_t i = last ? plane_last(plane, need, p->at[level])
				  : plane_first(plane, need, p->at[level] + 1);

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

/* PERF: the group is written as it is read, for reading after the store of one would stall. */
IOVA_INLINE void plane_set(iova_plane *p, uint32_t i, uint64_t value)
{
	uint64_t *group = p->at + i / 8 * 8, v[8], most = 0;

	for (uint32_t j = 0; j < 8; j++)
		v[j] = j == i % 8 ? value : group[j];
	for (uint32_t j = 0; j < 8; j++)
		most = v[j] > most ? v[j] : most;
	for (uint32_t j = 0; j < 8; j++)
		group[j] = v[j];
	p->top[i / 8] = most;
}

/* Set what plane k tells of the leaf, and what follows from it above. */
IOVA_INLINE void path_set(const iova_tree *t, const iova_path *p, int k, uint64_t value)
{
	for (int level = 1;; level++) {
		iova_plane *plane = plane_of(p->node[level], k);
		uint64_t before = plane->at[p->at[level]], above;

		if (before == value)
			return;
		plane_set(plane, p->at[level], value);
		if (level == t->height)
			return;
		above = plane_of(p->node[level + 1], k)->at[p->at[level + 1]];
		if (value > before) {
			if (value <= above)
				return;
		} else {
			if (before != above)
				return;
			value = max8(plane->top);
		}
	}
}

IOVA_INLINE void path_add(const iova_tree *t, const iova_path *p, uint64_t units)
{
	for (int level = 1; level <= t->height; level++)
		p->node[level]->more[IOVA_SUM]->at[p->at[level]] += units;
}

/* The first entry of the leaf has changed its start. */
static void path_set_key(const iova_tree *t, const iova_path *p, int level, uint64_t key)
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
			plane_set(plane_of(n, k), p->at[level], child_number(t, level, child, k));
		if (t->sums)
			n->more[IOVA_SUM]->at[p->at[level]] =
				child_number(t, level, child, IOVA_SUM);
	}
}

/* A gap has shrunk or gone from the leaf: what it had at most, now `most` at the plainest
 * alignment, may be less.
 * PERF: the first level is set in any case, for whether it changes is a coin toss.
 */
IOVA_INLINE void path_lose(const iova_tree *t, const iova_path *p, uint64_t stop, uint64_t gap,
			   uint64_t most, int wide)
{
	plane_set(&p->node[1]->max, p->at[1], most);
	for (int level = 2; level <= t->height; level++) {
		most = max8(p->node[level - 1]->max.top);
		if (p->node[level]->max.at[p->at[level]] == most)
			break;
		plane_set(&p->node[level]->max, p->at[level], most);
	}
	for (int k = 1; k < t->classes; k++) {
		uint64_t mask = t->mask[k];

		if (usable(stop, gap, mask) == plane_of(p->node[1], k)->at[p->at[1]])
			path_set(t, p, k, leaf_max_any(p->leaf, mask, wide));
	}
}

/* A gap has grown or appeared in the leaf. */
IOVA_INLINE void path_gain(const iova_tree *t, const iova_path *p, uint64_t stop, uint64_t gap)
{
	for (int level = 1; level <= t->height; level++) {
		iova_plane *plane = &p->node[level]->max;
		uint64_t *at = plane->at + p->at[level], *top = plane->top + p->at[level] / 8;

		*at = gap > *at ? gap : *at;
		*top = gap > *top ? gap : *top;
	}
	for (int k = 1; k < t->classes; k++) {
		uint64_t size = usable(stop, gap, t->mask[k]);

		if (size > plane_of(p->node[1], k)->at[p->at[1]])
			path_set(t, p, k, size);
	}
}

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
	uint32_t from = 0, count = first;

	for (uint32_t i = 0; i < leaves; i++) {
		count = i ? (r->count - from) / (leaves - i) : first;
		if (i + 1 < leaves)
			count -= (uint32_t)run_pair(r, from + count);
		run_write(r, n->child[left + i], from, count);
		inner_note(t, n, 1, left + i, n->child[left + i]);
		from += count;
	}
	inner_index(t, n, left);
}

/* Make room for an entry at `start` in the full leaf of the path.
 * PERF: what is dealt anew has room for ten entries or more in each leaf, so that it is not dealt
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

/* --- the gaps by size: a second B+tree, of (size, start), that best fit searches --- */

enum { SIZES_LANES = 32 };

typedef struct {
	uint64_t count;
	iova_plane **more; /* for each alignment but the first: the most that a child can give */
	uint64_t size[SIZES_LANES];
	uint64_t start[SIZES_LANES];
	void *child[SIZES_LANES]; /* a leaf ends before these */
} iova_gaps;

typedef struct iova_sizes {
	iova_gaps *root;
	int height; /* levels of inner nodes, 0 or more */
	iova_pool inners;
} iova_sizes;

typedef struct {
	iova_gaps *leaf;
	iova_gaps *node[IOVA_DEEP];
	uint32_t at[IOVA_DEEP];
} iova_gaps_path;

/* How many keys are at most (size, start). */
IOVA_INLINE uint32_t gaps_seek(const iova_gaps *g, uint64_t size, uint64_t start)
{
	uint32_t low = 0;

	/* PERF: halves without a branch, for which way to go is a coin toss. */
#pragma GCC unroll 5
	for (uint32_t half = SIZES_LANES / 2; half; half /= 2) {
		uint32_t i = low + half - 1;
		int below = (g->size[i] < size) | ((g->size[i] == size) & (g->start[i] <= start));

		low += below ? half : 0;
	}
	low += (g->size[low] < size) | ((g->size[low] == size) & (g->start[low] <= start));
	return low < g->count ? low : (uint32_t)g->count;
}

static void gaps_fill(iova_gaps *g)
{
	for (uint64_t i = g->count; i < SIZES_LANES; i++)
		g->size[i] = g->start[i] = ~(uint64_t)0;
}

static uint64_t gaps_number(const iova_tree *t, int level, const iova_gaps *g, int k)
{
	uint64_t most = 0;

	for (uint64_t i = 0; i < g->count; i++) {
		uint64_t one = level ? g->more[k]->at[i]
				     : usable(g->start[i], g->size[i], t->mask[k]);

		most = one > most ? one : most;
	}
	return most;
}

static void gaps_move(const iova_tree *t, int level, iova_gaps *into, uint64_t to, iova_gaps *g,
		      uint64_t from, uint64_t count)
{
	memmove(into->size + to, g->size + from, count * sizeof *g->size);
	memmove(into->start + to, g->start + from, count * sizeof *g->start);
	if (!level)
		return;
	memmove(into->child + to, g->child + from, count * sizeof *g->child);
	for (int k = 1; k < t->classes; k++)
		memmove(into->more[k]->at + to, g->more[k]->at + from, count * sizeof(uint64_t));
}

static iova_gaps *gaps_take(iova_tree *t, int level)
{
	iova_gaps *g = pool_take(level ? &t->sizes->inners : &t->blocks);

	g->count = 0;
	g->more = NULL;
	if (level && t->classes > 1) {
		g->more = pool_take(&t->blocks);
		memset(g->more, 0, IOVA_MORE * sizeof *g->more);
		for (int k = 1; k < t->classes; k++)
			g->more[k] = pool_take(&t->blocks);
	}
	return g;
}

static void gaps_give(iova_tree *t, int level, iova_gaps *g)
{
	if (g->more) {
		for (int k = 1; k < t->classes; k++)
			pool_give(&t->blocks, g->more[k]);
		pool_give(&t->blocks, g->more);
	}
	pool_give(level ? &t->sizes->inners : &t->blocks, g);
}

static void gaps_note(const iova_tree *t, iova_gaps *up, int level, uint64_t i, iova_gaps *g)
{
	up->child[i] = g;
	for (int k = 1; k < t->classes; k++)
		up->more[k]->at[i] = gaps_number(t, level - 1, g, k);
}

/* Split child i of a node at `level` that has room. */
static void gaps_split(iova_tree *t, iova_gaps *up, int level, uint32_t i)
{
	iova_gaps *low = up->child[i], *high = gaps_take(t, level - 1);
	uint64_t half = SIZES_LANES / 2;

	high->count = SIZES_LANES - half;
	gaps_move(t, level - 1, high, 0, low, half, high->count);
	low->count = half;
	gaps_fill(low);
	gaps_fill(high);
	gaps_move(t, level, up, i + 2, up, i + 1, up->count - i - 1);
	up->count++;
	up->size[i + 1] = high->size[0];
	up->start[i + 1] = high->start[0];
	gaps_note(t, up, level, i, low);
	gaps_note(t, up, level, i + 1, high);
}

/* Make sure that the gaps of one change can be noted. */
static int sizes_ready(iova_tree *t)
{
	size_t nodes = 2 * ((size_t)t->sizes->height + 2);

	return pool_reserve(t, &t->sizes->inners, nodes) &&
	       pool_reserve(t, &t->blocks, nodes * ((size_t)t->classes + 1) + 2 +
						   ((size_t)t->height + 4) * (inner_blocks(t) + 1));
}

IOVA_INLINE void sizes_add(iova_tree *t, uint64_t start, uint64_t size, int wide)
{
	iova_sizes *s = t->sizes;
	iova_gaps *g = s->root;
	uint32_t i;

	if (g->count == SIZES_LANES) {
		g = gaps_take(t, ++s->height);
		g->count = 1;
		g->size[0] = g->start[0] = 0;
		gaps_fill(g);
		gaps_note(t, g, s->height, 0, s->root);
		s->root = g;
	}
	for (int level = s->height; level; level--) {
		i = gaps_seek(g, size, start);
		i = i ? i - 1 : 0;
		if (((iova_gaps *)g->child[i])->count == SIZES_LANES) {
			gaps_split(t, g, level, i);
			i = gaps_seek(g, size, start);
			i = i ? i - 1 : 0;
		}
		for (int k = 1; k < t->classes; k++) {
			uint64_t most = usable(start, size, t->mask[k]);

			if (g->more[k]->at[i] < most)
				g->more[k]->at[i] = most;
		}
		g = g->child[i];
	}
	i = gaps_seek(g, size, start);
	BY_WIDTH(pairs_open, g->size, i, size);
	BY_WIDTH(pairs_open, g->start, i, start);
	g->count++;
}

IOVA_INLINE void gaps_down(const iova_tree *t, iova_gaps_path *p, uint64_t size, uint64_t start)
{
	iova_gaps *g = t->sizes->root;

	for (int level = t->sizes->height; level; level--) {
		uint32_t i = gaps_seek(g, size, start);

		p->node[level] = g;
		p->at[level] = i ? i - 1 : 0;
		g = g->child[p->at[level]];
	}
	p->leaf = g;
}

/* Join sparse neighbours below the node at `level` of the path. */
static void gaps_join(iova_tree *t, iova_gaps_path *p, int level)
{
	iova_gaps *up = p->node[level], *low, *high;
	uint32_t i = p->at[level] ? p->at[level] - 1 : 0;

	if (up->count == 1)
		return;
	low = up->child[i];
	high = up->child[i + 1];
	if (low->count + high->count > SIZES_LANES * 3 / 4)
		return;
	if (level > 1) {
		/* The first key of a node may be stale; the one above it divides. */
		high->size[0] = up->size[i + 1];
		high->start[0] = up->start[i + 1];
	}
	gaps_move(t, level - 1, low, low->count, high, 0, high->count);
	low->count += high->count;
	gaps_give(t, level - 1, high);
	gaps_move(t, level, up, i + 1, up, i + 2, up->count - i - 2);
	up->count--;
	gaps_fill(up);
	gaps_note(t, up, level, i, low);
}

IOVA_INLINE void sizes_drop(iova_tree *t, uint64_t start, uint64_t size, int wide)
{
	iova_sizes *s = t->sizes;
	iova_gaps_path p;
	iova_gaps *g;
	uint32_t i;

	gaps_down(t, &p, size, start);
	g = p.leaf;
	i = gaps_seek(g, size, start) - 1;
	g->count--;
	/* SAFETY: a leaf of gaps lies in a block that is larger than it by more than a lane. */
	BY_WIDTH(pairs_close, g->size, i);
	BY_WIDTH(pairs_close, g->start, i);
	g->size[SIZES_LANES - 1] = g->start[SIZES_LANES - 1] = ~(uint64_t)0;
	for (int k = 1; k < t->classes; k++) {
		uint64_t most = usable(start, size, t->mask[k]);

		for (int level = 1; level <= s->height; level++) {
			uint64_t *at = p.node[level]->more[k]->at + p.at[level];

			if (*at != most)
				break;
			*at = gaps_number(t, level - 1, p.node[level]->child[p.at[level]], k);
		}
	}
	for (int level = 1; level <= s->height; level++) {
		iova_gaps *below = p.node[level]->child[p.at[level]];

		if (below->count > SIZES_LANES / 4)
			break;
		gaps_join(t, &p, level);
	}
	while (s->height && s->root->count == 1) {
		g = s->root;
		s->root = g->child[0];
		gaps_give(t, s->height--, g);
	}
}

/* The first gap from (size, start) on, in this order, that has `need` units at alignment k. */
IOVA_INLINE int sizes_next(const iova_tree *t, int k, uint64_t need, uint64_t *size, uint64_t *start)
{
	iova_gaps_path p;
	uint64_t i;
	int level;

	gaps_down(t, &p, *size, *start);
	i = gaps_seek(p.leaf, *size, *start);
	if (i && p.leaf->size[i - 1] == *size && p.leaf->start[i - 1] == *start)
		i--;
	for (level = 0;;) {
		for (; i < p.leaf->count; i++) {
			if (usable(p.leaf->start[i], p.leaf->size[i], t->mask[k]) >= need) {
				*size = p.leaf->size[i];
				*start = p.leaf->start[i];
				return 1;
			}
		}
		/* Up to where a later child has it, and down again. */
		for (level++; level <= t->sizes->height; level++) {
			iova_gaps *g = p.node[level];

			for (i = p.at[level] + 1; i < g->count; i++)
				if (!k || g->more[k]->at[i] >= need)
					break;
			if (i < g->count)
				break;
		}
		if (level > t->sizes->height)
			return 0;
		p.at[level] = (uint32_t)i;
		while (level) {
			iova_gaps *g = p.node[level]->child[p.at[level]];

			level--;
			if (!level) {
				p.leaf = g;
				break;
			}
			for (i = 0; k && i + 1 < g->count && g->more[k]->at[i] < need; i++)
				;
			p.node[level] = g;
			p.at[level] = (uint32_t)i;
		}
		i = 0;
	}
}

typedef struct {
	uint64_t start, size;
} iova_gap;

/* Up to two gaps are gone, and up to two have come; those of no size do not count. */
IOVA_INLINE int sizes_change_any(iova_tree *t, iova_gap gone, iova_gap gone_too, iova_gap come,
			   iova_gap come_too, int wide)
{
	iova_gap g[4] = { gone, gone_too, come, come_too };

#pragma GCC unroll 1
	for (int i = 0; i < 2; i++)
		if (g[i].size)
			sizes_drop(t, g[i].start, g[i].size, wide);
#pragma GCC unroll 1
	for (int i = 2; i < 4; i++)
		if (g[i].size)
			sizes_add(t, g[i].start, g[i].size, wide);
	return 1;
}
IOVA_EACH_WIDTH(int, sizes_change, (iova_tree *t, iova_gap gone, iova_gap gone_too, iova_gap come, iova_gap come_too), t, gone, gone_too, come, come_too)

static void gaps_clear(iova_tree *t, int level, iova_gaps *g)
{
	for (uint64_t i = 0; level && i < g->count; i++)
		gaps_clear(t, level - 1, g->child[i]);
	gaps_give(t, level, g);
}

static void sizes_free(iova_tree *t)
{
	if (t->sizes) {
		gaps_clear(t, t->sizes->height, t->sizes->root);
		pool_clear(&t->sizes->inners);
		free(t->sizes);
		t->sizes = NULL;
	}
}

/* Begin to keep the gaps by size. */
IOVA_RARE int sizes_build(iova_tree *t)
{
	iova_path p;

	if (!pool_reserve(t, &t->blocks, 4))
		return 0;
	t->sizes = calloc(1, sizeof *t->sizes);
	if (!t->sizes)
		return 0;
	t->sizes->inners.size = (sizeof(iova_gaps) + 63) / 64 * 64;
	t->sizes->root = gaps_take(t, 0);
	gaps_fill(t->sizes->root);
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
			sizes_add(t, leaf_stop(p.leaf, i), gap, 0);
		}
	} while (path_step(t, &p, 1));
	return 1;
}

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

	if (!n->more) {
		n->more = pool_take(&t->blocks);
		memset(n->more, 0, IOVA_MORE * sizeof *n->more);
	}
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
	if (!pool_reserve(t, &t->blocks, 2 * inner_number(t->root, t->height)))
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
		return IOVA_NOMEM;
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
			path_set(t, p, k, 0);
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

/* Take out entry i of the path's leaf. */
IOVA_INLINE int tree_cut(iova_tree *t, iova_path *p, uint32_t i, int wide)
{
	iova_leaf *l = p->leaf;
	uint64_t stop, gap, mine, mine_stop, kept;

	if (__builtin_expect(t->sizes != NULL, 0) && !sizes_ready(t))
		return IOVA_NOMEM;
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
 * cuts have another size there, and those outside do not count. Gaps by size and gaps of the
 * window by address are looked at in turns, so the cost is that of the shorter of both lists.
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
	while (sizes_next(t, k, need, &size, &start)) {
		if (found && (size > best_size || (size == best_size && start >= best_start)))
			break;
		if (whole || (start >= low && start <= high && size - 1 <= high - start)) {
			best_at = (start + mask) & ~mask;
			found = 1;
			break;
		}
		start++;
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

/* What can be said of the gaps of a window: of those that its edges may cut, where they lie, and
 * of those between in all, how large the largest is, and how many units they have.
 */
typedef struct {
	uint64_t low_first, low_last; /* none where first > last */
	uint64_t high_first, high_last;
	uint64_t max; /* the largest gap between; 0 when there is none */
	uint64_t max_start;
	uint64_t max_aligned;
	uint64_t sum;
} iova_facts;

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
				one = plane_of(n, k)->at[c];
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

/* Gather the facts of [low, high] at the alignment 1 << shift. */
static int iova_tell(iova_tree *t, int shift, uint64_t low, uint64_t high, iova_facts *f)
{
	iova_path a, b;
	uint32_t i, j;

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
	f->low_first = f->high_first = 1;
	if (leaf_gap(a.leaf, i)) {
		f->low_first = leaf_stop(a.leaf, i);
		f->low_last = leaf_next(a.leaf, i) - 1;
	}
	if (a.leaf == b.leaf && i == j)
		return IOVA_OK;
	if (leaf_gap(b.leaf, j)) {
		f->high_first = leaf_stop(b.leaf, j);
		f->high_last = leaf_next(b.leaf, j) - 1;
	}
	f->max = facts_between(t, &a, i, &b, j, 0);
	f->max_aligned = facts_between(t, &a, i, &b, j, t->class_of[shift]);
	f->sum = facts_between(t, &a, i, &b, j, IOVA_SUM);
	if (f->max)
		choose_first(t, &b, &j, f->max, 0, leaf_next(a.leaf, i), high, &f->max_start);
	return IOVA_OK;
}

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

/* --- every invariant, in words --- */

#define MUST(truth, words)            \
	do {                          \
		if (!(truth))         \
			return words; \
	} while (0)

static const char *check_leaf(const iova_leaf *l, uint64_t above)
{
	iova_entry e[IOVA_LANES];
	iova_leaf same;

	MUST(l->count >= 1 && l->count <= IOVA_LANES, "a leaf has 1 to 64 entries");
	MUST(l->above == above, "a leaf knows where the next begins");
	leaf_read(l, e);
	for (uint32_t i = 0; i + 1 < l->count; i++) {
		MUST(e[i].start + e[i].len <= e[i + 1].start &&
			     (e[i].len || e[i].start <= e[i + 1].start),
		     "entries are ascending and disjoint");
		MUST(e[i + 1].start - l->base < IOVA_FAR, "only the first or last entry is far");
		MUST(e[i].len || e[i].fixed, "only a fixed entry has no length");
	}
	leaf_write(&same, e, l->count, above);
	MUST(!memcmp(same.line, l->line, sizeof l->line), "the lines repeat the last lane of each");
	MUST(same.fixed == l->fixed && same.tail == l->tail && same.base == l->base &&
		     !memcmp(same.next, l->next, sizeof l->next) &&
		     !memcmp(same.stop, l->stop, sizeof l->stop),
	     "the lanes are what the entries say, and IOVA_FAR beyond");
	return NULL;
}

static const char *check_inner(const iova_tree *t, const iova_inner *n, int level, uint64_t above,
			       int is_root)
{
	MUST(n->count >= 1 && n->count <= IOVA_LANES && (level == 1 || !is_root || n->count > 1),
	     "an inner node has 1 to 64 children, the root at least 2");
	for (uint32_t i = 0; i < IOVA_LANES; i++) {
		uint64_t next = i + 1 < n->count ? n->key.at[i + 1] : above, key;
		const char *wrong;

		if (i >= n->count) {
			MUST(n->key.at[i] == ~(uint64_t)0, "unused keys are the highest");
			for (int k = 0; k < t->classes; k++)
				MUST(plane_of(n, k)->at[i] == 0, "unused numbers are 0");
			continue;
		}
		wrong = level == 1 ? check_leaf(n->child[i], next)
				   : check_inner(t, n->child[i], level - 1, next, 0);
		if (wrong)
			return wrong;
		key = level == 1 ? ((iova_leaf *)n->child[i])->base
				 : ((iova_inner *)n->child[i])->key.at[0];
		MUST(n->key.at[i] == key, "a key is where the first entry below starts");
		MUST(i == 0 || n->key.at[i - 1] < key, "keys are ascending");
		for (int k = 0; k < t->classes; k++)
			MUST(plane_of(n, k)->at[i] == child_number(t, level, n->child[i], k),
			     "a plane tells the most that can be had below");
		MUST(!t->sums || n->more[IOVA_SUM]->at[i] ==
					 child_number(t, level, n->child[i], IOVA_SUM),
		     "the plane of sums adds up");
	}
	for (int g = 0; g < 8; g++) {
		MUST(n->key.top[g] == n->key.at[8 * g], "the short list of keys is up to date");
		for (int k = 0; k < t->classes; k++)
			MUST(plane_of(n, k)->top[g] == max8(plane_of(n, k)->at + 8 * g),
			     "the short list of a plane is up to date");
	}
	return NULL;
}

static const char *check_gaps(const iova_tree *t, const iova_gaps *g, int level, uint64_t *keys)
{
	MUST(g->count <= SIZES_LANES && (g->count || !level), "a node of gaps has 1 to 32 keys");
	for (uint64_t i = 0; i < SIZES_LANES; i++) {
		if (i >= g->count) {
			MUST(g->size[i] == ~(uint64_t)0 && g->start[i] == ~(uint64_t)0,
			     "unused keys are the highest");
			continue;
		}
		MUST(i == 0 || g->size[i - 1] < g->size[i] ||
			     (g->size[i - 1] == g->size[i] && g->start[i - 1] < g->start[i]),
		     "gaps are ordered by size and start");
		if (!level) {
			++*keys;
			continue;
		}
		for (int k = 1; k < t->classes; k++)
			MUST(g->more[k]->at[i] == gaps_number(t, level - 1, g->child[i], k),
			     "a plane of gaps tells the most that can be had below");
		{
			const char *wrong = check_gaps(t, g->child[i], level - 1, keys);

			if (wrong)
				return wrong;
		}
	}
	return NULL;
}

static const char *check_pool(const iova_pool *p)
{
	size_t spare = p->left;

	for (void *b = p->free; b; b = *(void **)b)
		spare++;
	MUST(spare == p->spare, "a pool knows how many blocks it has");
	return NULL;
}

/* The first invariant that does not hold, or NULL. */
static const char *iova_check(const iova_tree *t)
{
	const char *wrong = check_inner(t, t->root, t->height, t->top, 1);
	uint64_t keys = 0, gaps = 0;
	iova_path p;

	if (!wrong)
		wrong = check_pool(&t->blocks);
	if (!wrong)
		wrong = check_pool(&t->inners);
	if (wrong || !t->sizes)
		return wrong;
	wrong = check_gaps(t, t->sizes->root, t->sizes->height, &keys);
	if (wrong)
		return wrong;
	memset(&p, 0, sizeof p);
	path_down(t, &p, 0);
	do {
		for (uint32_t i = 0; i < p.leaf->count; i++) {
			uint64_t size = leaf_gap(p.leaf, i), start = leaf_stop(p.leaf, i);
			uint64_t same_size = size, same_start = start;

			if (!size)
				continue;
			gaps++;
			MUST(sizes_next(t, 0, 1, &same_size, &same_start) && same_size == size &&
				     same_start == start,
			     "every gap is in the order by size");
		}
	} while (path_step(t, &p, 1));
	MUST(gaps == keys, "the order by size has no gap that is gone");
	return NULL;
}

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
