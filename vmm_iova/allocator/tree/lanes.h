/* SPDX-License-Identifier: Apache-2.0
 *
 * The loops over the lanes of a leaf, IOVA_WIDTH lanes at once: tree.h includes this for vectors of
 * four lanes, which every target has, and on x86-64 again for eight, which run only where the CPU
 * has them. V(name) is the name with the width behind it.
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
