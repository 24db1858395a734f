/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors, and the loops over the lanes of a leaf and over the eight numbers of a group. Part of
 * code.h, which is compiled for vectors of four lanes, which every target has, and on x86-64 again
 * for eight (IOVA_WIDE), which run only where the CPU has AVX2.
 *
 * PERF: a load waits for a store that is still on its way unless the store covers it. So lanes are
 * written in vectors, as they are read; and a number that was written alone is read alone.
 */
#ifdef IOVA_WIDE
#include <immintrin.h>
enum { IOVA_WIDTH = 8 };
#else
enum { IOVA_WIDTH = 4 };
#endif

typedef int32_t lanes __attribute__((vector_size(4 * IOVA_WIDTH)));
typedef int32_t lanes_at __attribute__((vector_size(4 * IOVA_WIDTH), aligned(4), may_alias));

typedef uint32_t bare_lanes __attribute__((vector_size(4 * IOVA_WIDTH)));
typedef uint64_t words __attribute__((vector_size(4 * IOVA_WIDTH)));

IOVA_INLINE lanes load(const void *at)
{
	return *(const lanes_at *)at;
}

IOVA_INLINE void store(void *at, lanes v)
{
	*(lanes_at *)at = v;
}

IOVA_INLINE lanes all(int32_t value)
{
	lanes v = { value };

#ifdef IOVA_WIDE
	return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0);
#else
	return __builtin_shufflevector(v, v, 0, 0, 0, 0);
#endif
}

/* PERF: GCC makes three instructions of `mask ? yes : no` on vectors, and four of the larger. */
IOVA_INLINE lanes pick(lanes mask, lanes yes, lanes no)
{
#ifdef IOVA_WIDE
	return (lanes)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
#else
	return (yes & mask) | (no & ~mask);
#endif
}

IOVA_INLINE lanes larger(lanes a, lanes b)
{
#ifdef IOVA_WIDE
	return (lanes)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
	return pick(a > b, a, b);
#endif
}

/* The largest of the numbers. */
IOVA_INLINE int32_t largest(lanes v)
{
#ifdef IOVA_WIDE
	v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
	v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
	v = larger(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
	return v[0];
#else
	v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
	return v[0] > v[1] ? v[0] : v[1];
#endif
}

/* The sum of the numbers. */
IOVA_INLINE int32_t total(lanes v)
{
#ifdef IOVA_WIDE
	v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
	v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
#else
	v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
#endif
	return v[0] + v[1];
}

/* How many of 16 ascending numbers are at most x, which is not the largest that there is. */
IOVA_INLINE uint32_t atmost16(const int32_t *numbers, int32_t x)
{
	lanes found = all(0), above = all(x + 1);

#pragma GCC unroll 4
	for (int c = 0; c < 16; c += IOVA_WIDTH)
		found -= above > load(numbers + c);
	return (uint32_t)total(found);
}

/* The same of 64 numbers, and which they are. */
IOVA_INLINE uint32_t atmost(const int32_t *numbers, int32_t x, lanes *which)
{
	lanes above = all(x + 1);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES / IOVA_WIDTH; c++)
		which[c] = above > load(numbers + c * IOVA_WIDTH);
#ifdef IOVA_WIDE
	{
		__m256i a = _mm256_packs_epi32((__m256i)which[0], (__m256i)which[1]);
		__m256i b = _mm256_packs_epi32((__m256i)which[2], (__m256i)which[3]);
		__m256i c = _mm256_packs_epi32((__m256i)which[4], (__m256i)which[5]);
		__m256i d = _mm256_packs_epi32((__m256i)which[6], (__m256i)which[7]);
		unsigned low = (unsigned)_mm256_movemask_epi8(_mm256_packs_epi16(a, b));
		unsigned high = (unsigned)_mm256_movemask_epi8(_mm256_packs_epi16(c, d));

		return (uint32_t)(__builtin_popcount(low) + __builtin_popcount(high));
	}
#else
	{
		lanes found = all(0);

#pragma GCC unroll 16
		for (int c = 0; c < IOVA_LANES / IOVA_WIDTH; c++)
			found -= which[c];
		return (uint32_t)total(found);
	}
#endif
}

#define EIGHT(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
static const int32_t iova_number[IOVA_LANES] __attribute__((aligned(64))) = {
	EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
};

/* Lanes c to c + IOVA_WIDTH: those below `from` from one vector, the others from another.
 * PERF: `at` has `from` in each lane, so that this is one comparison with what is in memory.
 */
IOVA_INLINE lanes lanes_from(int c, lanes at, lanes others, lanes below)
{
	return pick(at > load(iova_number + c), below, others);
}

/* What the lanes tell of their gaps: exact but for the last of the leaf, of which it may be less.
 * The questions below are asked with a mask that is the constant 0 as well, so that the compiler
 * makes a plainer loop for the plainest alignment.
 */
IOVA_INLINE lanes gaps_at(const iova_leaf *l, int c, int32_t mask)
{
	lanes stop = load(l->stop + c), gap = load(l->next + c) - stop, pad;

	if (!mask)
		return gap;
	pad = -(stop + (int32_t)(l->base & IOVA_FAR)) & mask;
	return (gap - pad) & (gap > pad);
}

/* Bit i: the lanes tell of `need` in the gap above entry i. */
IOVA_INLINE uint64_t lanes_fit(const iova_leaf *l, int32_t mask, int32_t need)
{
	lanes least = all(need - 1);
#ifdef IOVA_WIDE
	uint64_t bits = 0;

#pragma GCC unroll 2
	for (int c = 0; c < IOVA_LANES; c += 32) {
		__m256i a = _mm256_packs_epi32((__m256i)(gaps_at(l, c, mask) > least),
					       (__m256i)(gaps_at(l, c + 8, mask) > least));
		__m256i b = _mm256_packs_epi32((__m256i)(gaps_at(l, c + 16, mask) > least),
					       (__m256i)(gaps_at(l, c + 24, mask) > least));
		/* Packing works on each half by itself and leaves fours of lanes out of order. */
		const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
		__m256i both = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);

		bits |= (uint64_t)(uint32_t)_mm256_movemask_epi8(both) << c;
	}
	return bits;
#else
	static const uint32_t bit[32] __attribute__((aligned(64))) = {
		1u << 0,  1u << 1,  1u << 2,  1u << 3,	1u << 4,  1u << 5,  1u << 6,  1u << 7,
		1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
		1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
		1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31,
	};
	lanes half[2] = { all(0), all(0) };

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH)
		half[c / 32] |= (gaps_at(l, c, mask) > least) & load(bit + c % 32);
	for (int i = 0; i < 2; i++) {
		half[i] |= __builtin_shufflevector(half[i], half[i], 2, 3, 0, 1);
		half[i][0] |= half[i][1];
	}
	return (uint32_t)half[0][0] | (uint64_t)(uint32_t)half[1][0] << 32;
#endif
}

IOVA_INLINE int32_t lanes_max(const iova_leaf *l, int32_t mask)
{
	lanes most = all(0);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH)
		most = larger(most, gaps_at(l, c, mask));
	return largest(most);
}

/* One lane, or one pair of lanes, all ones: at the place of the vector that is loaded from. */
static const int32_t iova_lane[15] = { [7] = -1 };
static const int32_t iova_pair[14] __attribute__((unused)) = { [6] = -1, [7] = -1 };

/* Put a number into one lane. */
IOVA_INLINE void lane_set(int32_t *numbers, uint32_t i, int32_t value)
{
	uint32_t at = i % IOVA_WIDTH;

	numbers += i - at;
	store(numbers, pick(load(iova_lane + 7 - at), all(value), load(numbers)));
}

/* Put an entry above entry i, and return the largest gap that the lanes then tell of but for the two
 * beside it.
 * SAFETY: what is read before lane 0 is `zero` of the leaf, or the other half of its lanes, which
 * is not used.
 */
IOVA_INLINE int32_t lanes_open(iova_leaf *l, uint32_t i, int32_t start, int32_t stop)
{
	lanes at = all((int32_t)i), at_stop = all((int32_t)i + 2), most = all(0);

	/* Lane i of `next` and lane i + 1 of `stop` come last; till then both make a gap of 0 or less. */
#pragma GCC unroll 16
	for (int c = IOVA_LANES - IOVA_WIDTH; c >= 0; c -= IOVA_WIDTH) {
		const char *next_lanes = (const char *)(l->next + c);
		const char *stop_lanes = (const char *)(l->stop + c);
		lanes n = lanes_from(c, at, load(next_lanes - 4), load(next_lanes));
		lanes s = lanes_from(c, at_stop, load(stop_lanes - 4), load(stop_lanes));

		store(l->next + c, n);
		store(l->stop + c, s);
		most = larger(most, n - s);
	}
	lane_set(l->next, i, start);
	lane_set(l->stop, i + 1, stop);
	return largest(most);
}

/* Lanes c to c + IOVA_WIDTH, each from one above; the last is IOVA_FAR. */
IOVA_INLINE lanes lanes_above(const int32_t *numbers, int c)
{
	if (c + IOVA_WIDTH < IOVA_LANES)
		return load(numbers + c + 1);
#ifdef IOVA_WIDE
	return __builtin_shufflevector(load(numbers + c), all(IOVA_FAR), 1, 2, 3, 4, 5, 6, 7, 8);
#else
	return __builtin_shufflevector(load(numbers + c), all(IOVA_FAR), 1, 2, 3, 4);
#endif
}

/* Take out the entry that starts at a distance, which is not the first: the lanes of `next` that are
 * less stay, and the lanes of `stop` where `next` is at most that, which `below` tells.
 */
IOVA_INLINE void lanes_close(iova_leaf *l, int32_t start, const lanes *below)
{
	lanes here = all(start);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		lanes n = load(l->next + c), s = load(l->stop + c);

		store(l->next + c, pick(here > n, n, lanes_above(l->next, c)));
		store(l->stop + c, pick(below[c / IOVA_WIDTH], s, lanes_above(l->stop, c)));
	}
}

/* Write 64 lanes with a distance added to the first `count`; the others become IOVA_FAR, whatever
 * they were: so they may wrap.
 */
IOVA_INLINE void lanes_move(int32_t *to, const int32_t *from, int32_t add, uint32_t count)
{
	lanes below = all((int32_t)count);

	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		lanes moved = (lanes)((bare_lanes)load(from + c) + (bare_lanes)all(add));

		store(to + c, lanes_from(c, below, all(IOVA_FAR), moved));
	}
}

/* Take out the first lane, and a distance from the others. */
IOVA_INLINE void lanes_first(int32_t *numbers, int32_t distance)
{
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		lanes v = lanes_above(numbers, c);

		store(numbers + c, pick(v == all(IOVA_FAR), v, v - all(distance)));
	}
}

/* Put one of 32 numbers of 64 bits, which are 64 lanes in pairs, in at `from`. */
IOVA_INLINE void pairs_open(void *pairs, uint32_t from, uint64_t value)
{
	lanes at = all(2 * (int32_t)from), at_next = all(2 * (int32_t)from + 2), here;

	here = (lanes)((words){ 0 } + value);
#pragma GCC unroll 16
	for (int c = IOVA_LANES - IOVA_WIDTH; c >= 0; c -= IOVA_WIDTH) {
		char *to = (char *)pairs + 4 * c;
		lanes moved = lanes_from(c, at_next, load(to - 8), here);

		store(to, lanes_from(c, at, moved, load(to)));
	}
}

/* Take one out at `from`; what comes into the last place is not defined. */
IOVA_INLINE void pairs_close(void *pairs, uint32_t from)
{
	lanes at = all(2 * (int32_t)from);

#pragma GCC unroll 16
	for (int c = 0; c < IOVA_LANES; c += IOVA_WIDTH) {
		char *to = (char *)pairs + 4 * c;

		store(to, lanes_from(c, at, load(to + 8), load(to)));
	}
}

/* --- groups of eight numbers of 64 bits, without sign --- */

/* Bit i: v[i] is below x.
 * PERF: one by one, for one of them was mostly written just now, alone; keys are not.
 */
IOVA_INLINE unsigned below8(const uint64_t *v, uint64_t x)
{
	unsigned bits = 0;

#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		bits |= (unsigned)(v[i] < x) << i;
	return bits;
}

/* A key: in the order of numbers with a sign, for AVX2 compares no others. */
IOVA_INLINE int64_t key_of(uint64_t x)
{
	return (int64_t)(x ^ (uint64_t)1 << 63);
}

/* Bit i: v[i] is above x. */
IOVA_INLINE unsigned above8(const int64_t *v, int64_t x)
{
#ifdef IOVA_WIDE
	__m256i all = _mm256_set1_epi64x(x);
	__m256i low = _mm256_cmpgt_epi64(_mm256_loadu_si256((const __m256i *)v), all);
	__m256i high = _mm256_cmpgt_epi64(_mm256_loadu_si256((const __m256i *)(v + 4)), all);

	return (unsigned)_mm256_movemask_pd((__m256d)low) |
	       (unsigned)_mm256_movemask_pd((__m256d)high) << 4;
#else
	unsigned bits = 0;

#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		bits |= (unsigned)(v[i] > x) << i;
	return bits;
#endif
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
IOVA_INLINE uint32_t least8(const uint64_t *v, uint64_t x)
{
	return ~below8(v, x) & 0xff;
}

/* --- the same of numbers of 32 bits ---
 * PERF: one vector, written as it is read: a store that is narrower would make the next search wait.
 */
#ifdef IOVA_WIDE
IOVA_INLINE uint32_t near_least8(const int32_t *v, int32_t x)
{
	return (uint32_t)_mm256_movemask_ps((__m256)(load(v) > all(x - 1)));
}

IOVA_INLINE int32_t near_max8(const int32_t *v)
{
	return largest(load(v));
}

/* Set number i of eight, and return the largest. */
IOVA_INLINE int32_t near_set8(int32_t *v, uint32_t i, int32_t value)
{
	lanes now = pick(all((int32_t)i) == load(iova_number), all(value), load(v));

	store(v, now);
	return largest(now);
}

/* Make number i of eight at least so large. */
IOVA_INLINE void near_raise8(int32_t *v, uint32_t i, int32_t value)
{
	store(v, larger(load(v), all(value) & (all((int32_t)i) == load(iova_number))));
}
#else
IOVA_INLINE uint32_t near_least8(const int32_t *v, int32_t x)
{
	uint32_t bits = 0;

#pragma GCC unroll 8
	for (int i = 0; i < 8; i++)
		bits |= (uint32_t)(v[i] >= x) << i;
	return bits;
}

IOVA_INLINE int32_t near_max8(const int32_t *v)
{
	int32_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
	int32_t c = v[4] > v[5] ? v[4] : v[5], d = v[6] > v[7] ? v[6] : v[7];

	a = a > b ? a : b;
	c = c > d ? c : d;
	return a > c ? a : c;
}

IOVA_INLINE int32_t near_set8(int32_t *v, uint32_t i, int32_t value)
{
	v[i] = value;
	return near_max8(v);
}

IOVA_INLINE void near_raise8(int32_t *v, uint32_t i, int32_t value)
{
	v[i] = value > v[i] ? value : v[i];
}
#endif

/* How many of eight ascending numbers are at most x. */
IOVA_INLINE uint32_t atmost8(const int64_t *v, int64_t x)
{
	return (uint32_t)__builtin_ctz(above8(v, x) | 0x100);
}
