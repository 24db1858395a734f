/* SPDX-License-Identifier: Apache-2.0
 *
 * Blocks of memory, and the leaves of the tree: what one leaf tells of its entries and gaps, and
 * runs of entries that are dealt to leaves anew. Part of code.h, which has the shapes.
 */
/* --- blocks --- */

IOVA_RARE int pool_grow(iova_tree *t, iova_pool *p, size_t wanted)
{
	size_t count = p->bytes / p->size / 64 + 4;
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

/* PERF: no branch, for what this is asked with is a coin toss. */
IOVA_INLINE uint64_t either(int first, uint64_t a, uint64_t b)
{
	return first ? a : b;
}

IOVA_INLINE uint64_t larger_of(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

IOVA_INLINE int32_t near(uint64_t distance)
{
	return distance < IOVA_FAR ? (int32_t)distance : IOVA_FAR;
}

IOVA_INLINE uint64_t leaf_start(const iova_leaf *l, uint32_t i)
{
	return i ? l->base + (uint64_t)l->next[i - 1] : l->base;
}

/* PERF: whether an entry is the last of its leaf is a coin toss; whether it is a far one is not. */
IOVA_INLINE int is_far(int32_t distance)
{
	return __builtin_expect(distance == IOVA_FAR, 0);
}

IOVA_INLINE uint64_t leaf_stop(const iova_leaf *l, uint32_t i)
{
	return is_far(l->stop[i]) ? l->tail : l->base + (uint64_t)l->stop[i];
}

IOVA_INLINE uint64_t leaf_next(const iova_leaf *l, uint32_t i)
{
	return is_far(l->next[i]) ? l->above : l->base + (uint64_t)l->next[i];
}

/* Units of the gap above entry i. The one of all 2^64 units counts one less. */
IOVA_INLINE uint64_t leaf_gap(const iova_leaf *l, uint32_t i)
{
	if (!is_far(l->next[i]) && !is_far(l->stop[i]))
		return (uint64_t)(l->next[i] - l->stop[i]);
	return l->above - l->tail - ((l->above | l->tail | l->base) == 0 && l->count == 1);
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

/* PERF: one at a time, for GCC reads two at once across two stores that are still on their way. */
IOVA_INLINE void leaf_set_lines(iova_leaf *l)
{
	for (int i = 0; i < 3; i++)
		l->line[i] = *(const volatile int32_t *)&l->next[16 * i + 15];
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

/* The last entry that starts at x or below; the lanes below it. */
IOVA_INLINE uint32_t leaf_seek_lanes(const iova_leaf *l, uint64_t x, lanes *below)
{
	return atmost(l->next, leaf_distance(l, x), below);
}

IOVA_INLINE uint32_t leaf_seek(const iova_leaf *l, uint64_t x)
{
	lanes below[IOVA_LANES / IOVA_WIDTH];

	return leaf_seek_lanes(l, x, below);
}

/* Bit i: the lanes tell of `need` usable units in the gap above entry i. The last may have them too. */
IOVA_INLINE uint64_t leaf_fit(const iova_leaf *l, uint64_t mask, uint64_t need)
{
	uint64_t bits = 0;

	if (mask > IOVA_FAR) {
		for (uint32_t i = 0; i + 1 < l->count; i++)
			bits |= (uint64_t)(leaf_usable(l, i, mask) >= need) << i;
	} else if (need <= IOVA_FAR) {
		bits = mask ? lanes_fit(l, (int32_t)mask, (int32_t)need)
			    : lanes_fit(l, 0, (int32_t)need);
	}
	return bits;
}

/* The first entry from `from` on whose gap has `need` usable units, or IOVA_LANES. */
IOVA_INLINE uint32_t leaf_first(const iova_leaf *l, uint64_t mask, uint64_t need, uint32_t from)
{
	uint64_t bits = leaf_fit(l, mask, need);
	uint32_t last = l->count - 1;

	if (from)
		bits = from < IOVA_LANES ? bits >> from << from : 0;
	if (__builtin_expect(bits != 0, 1))
		return (uint32_t)__builtin_ctzll(bits);
	return last >= from && leaf_usable(l, last, mask) >= need ? last : IOVA_LANES;
}

/* The last entry below `below` whose gap has `need` usable units, or IOVA_LANES. */
IOVA_INLINE uint32_t leaf_last(const iova_leaf *l, uint64_t mask, uint64_t need, uint32_t below)
{
	uint32_t last = l->count - 1;
	uint64_t bits;

	if (below > last && leaf_usable(l, last, mask) >= need)
		return last;
	bits = leaf_fit(l, mask, need);
	if (below < IOVA_LANES)
		bits &= ((uint64_t)1 << below) - 1;
	return bits ? 63 - (uint32_t)__builtin_clzll(bits) : IOVA_LANES;
}

/* The largest usable size of the leaf. */
static uint64_t leaf_max(const iova_leaf *l, uint64_t mask)
{
	uint64_t last = leaf_usable(l, l->count - 1, mask), most = 0;

	if (mask > IOVA_FAR) {
		for (uint32_t i = 0; i + 1 < l->count; i++)
			if (leaf_usable(l, i, mask) > most)
				most = leaf_usable(l, i, mask);
	} else {
		most = (uint64_t)(mask ? lanes_max(l, (int32_t)mask) : lanes_max(l, 0));
	}
	return last > most ? last : most;
}

/* Units free in the leaf. All 2^64 are 0 here, for what is added and taken away must meet it again. */
static uint64_t leaf_sum(const iova_leaf *l)
{
	uint64_t sum = l->above - l->tail;

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
	l->zero = 0;
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

/* Take out the first of several entries: distances are from the second from then on. */
static void leaf_cut_first(iova_leaf *l)
{
	int32_t first = l->next[0];

	lanes_first(l->next, first);
	lanes_first(l->stop, first);
	l->base += (uint64_t)first;
	l->fixed >>= 1;
	l->count--;
	leaf_set_tail(l, l->tail);
	leaf_set_above(l, l->above);
}

/* The entries of neighbouring leaves, taken out to be dealt anew. Distances are from the base of the
 * first.
 */
typedef struct {
	uint64_t base, above, tail;
	uint64_t fixed[IOVA_RUN + 1];
	uint32_t count;
	/* One leaf more than there are entries for: a leaf is written from any of them in one go. */
	int32_t next[(IOVA_RUN + 1) * IOVA_LANES];
	int32_t stop[(IOVA_RUN + 1) * IOVA_LANES];
} iova_run;

/* Take a leaf in; 0 when it lies too far from the first. */
static int run_add(iova_run *r, const iova_leaf *l)
{
	uint32_t n = r->count, delta = 0;
	uint64_t *fixed = r->fixed + n / 64;

	if (n) {
		if (leaf_start(l, l->count - 1) - r->base >= IOVA_FAR ||
		    r->tail - r->base >= IOVA_FAR)
			return 0;
		delta = (uint32_t)(l->base - r->base);
		r->next[n - 1] = (int32_t)delta;
		r->stop[n - 1] = (int32_t)(r->tail - r->base);
	} else {
		r->base = l->base;
		memset(r->fixed, 0, sizeof r->fixed);
	}
	fixed[0] |= l->fixed << n % 64;
	fixed[1] |= n % 64 ? l->fixed >> (64 - n % 64) : 0;
	lanes_move(r->next + n, l->next, (int32_t)delta, IOVA_LANES);
	lanes_move(r->stop + n, l->stop, (int32_t)delta, IOVA_LANES);
	r->count = n + l->count;
	r->tail = l->tail;
	r->above = l->above;
	return 1;
}

/* Make a leaf of entries [from, from + count). */
static void run_write(const iova_run *r, iova_leaf *l, uint32_t from, uint32_t count)
{
	uint32_t first = from ? (uint32_t)r->next[from - 1] : 0, stop = from + count;
	const uint64_t *fixed = r->fixed + from / 64;

	l->base = r->base + first;
	l->zero = 0;
	l->count = count;
	l->fixed = fixed[0] >> from % 64 | (from % 64 ? fixed[1] << (64 - from % 64) : 0);
	if (count < 64)
		l->fixed &= ((uint64_t)1 << count) - 1;
	lanes_move(l->next, r->next + from, -(int32_t)first, count);
	lanes_move(l->stop, r->stop + from, -(int32_t)first, count);
	leaf_set_tail(l, stop == r->count ? r->tail : r->base + (uint64_t)r->stop[stop - 1]);
	leaf_set_above(l, stop == r->count ? r->above : r->base + (uint64_t)r->next[stop - 1]);
}

/* Tell whether entries i - 1 and i start at one place: a seam and what begins at it. */
static int run_pair(const iova_run *r, uint32_t i)
{
	return r->next[i - 1] == (i > 1 ? r->next[i - 2] : 0);
}
