/* SPDX-License-Identifier: Apache-2.0
 *
 * The gaps by size: a second B+tree, of (size, start), that best fit searches. Part of code.h. It
 * is built when best fit is first asked for, and kept from then on. There are more such trees, each
 * of the gaps of a part of the space, where windows need them: zones.h.
 */
enum { SIZES_LANES = 32 };

typedef struct {
	uint64_t count;
	/* For each child: by number 0 the slots of its gaps, by the others the most that it can give. */
	iova_plane **more;
	uint64_t size[SIZES_LANES];
	uint64_t start[SIZES_LANES];
	void *child[SIZES_LANES]; /* a leaf ends before these */
} iova_gaps;

typedef struct {
	iova_gaps *leaf;
	iova_gaps *node[IOVA_DEEP];
	uint32_t at[IOVA_DEEP];
} iova_gaps_path;

/* The gaps by size that start in one part of the space, which is cut into 64 slots. */
typedef struct iova_zone {
	iova_gaps *root;
	int height; /* levels of inner nodes, 0 or more */
	int classes; /* planes of classes, as in the tree */
	int masked; /* the plane of slots exists */
	int shift; /* a slot is 1 << shift units */
	uint64_t low, last; /* where the first slot begins, and where its part ends */
	uint64_t count;
	struct iova_zone *slot[64]; /* the zones that were made of slots */
} iova_zone;

typedef struct {
	uint64_t start, size;
} iova_gap;

typedef struct iova_sizes {
	iova_zone all;
	iova_pool inners;
	/* PERF: the gap that a search found is mostly the next that is dropped. */
	iova_gaps_path found;
	int found_at; /* where in its leaf, or -1 when it may be there no more */
} iova_sizes;

/* How many keys are at most (size, start). */
IOVA_INLINE uint32_t gaps_seek(const iova_gaps *g, uint64_t size, uint64_t start)
{
#ifdef IOVA_WIDE
	uint64_t count = 0;

	for (int i = 0; i < SIZES_LANES; i++)
		count += (g->size[i] < size) | ((g->size[i] == size) & (g->start[i] <= start));
	return (uint32_t)(count < g->count ? count : g->count);
#else
	uint32_t low = 0;

	/* PERF: without vectors by halves; without a branch, for which way to go is a coin toss. */
#pragma GCC unroll 5
	for (uint32_t half = SIZES_LANES / 2; half; half /= 2) {
		uint32_t i = low + half - 1;
		int below = (g->size[i] < size) | ((g->size[i] == size) & (g->start[i] <= start));

		low += below ? half : 0;
	}
	low += (g->size[low] < size) | ((g->size[low] == size) & (g->start[low] <= start));
	return low < g->count ? low : (uint32_t)g->count;
#endif
}

static void gaps_fill(iova_gaps *g)
{
	for (uint64_t i = g->count; i < SIZES_LANES; i++)
		g->size[i] = g->start[i] = ~(uint64_t)0;
}

IOVA_INLINE uint64_t zone_bit(const iova_zone *z, uint64_t start)
{
	return (uint64_t)1 << ((start - z->low) >> z->shift);
}

static uint64_t gaps_number(const iova_tree *t, const iova_zone *z, int level, const iova_gaps *g,
			    int k)
{
	uint64_t most = 0;

	for (uint64_t i = 0; !k && i < g->count; i++)
		most |= level ? g->more[0]->at[i] : zone_bit(z, g->start[i]);
	for (uint64_t i = 0; k && i < g->count; i++) {
		uint64_t one = level ? g->more[k]->at[i]
				     : usable(g->start[i], g->size[i], t->mask[k]);

		most = one > most ? one : most;
	}
	return most;
}

static void gaps_move(const iova_zone *z, int level, iova_gaps *into, uint64_t to, iova_gaps *g,
		      uint64_t from, uint64_t count)
{
	memmove(into->size + to, g->size + from, count * sizeof *g->size);
	memmove(into->start + to, g->start + from, count * sizeof *g->start);
	if (!level)
		return;
	memmove(into->child + to, g->child + from, count * sizeof *g->child);
	for (int k = !z->masked; k < z->classes; k++)
		memmove(into->more[k]->at + to, g->more[k]->at + from, count * sizeof(uint64_t));
}

static iova_gaps *gaps_take(iova_tree *t, const iova_zone *z, int level)
{
	iova_gaps *g = pool_take(level ? &t->sizes->inners : &t->blocks);

	g->count = 0;
	g->more = NULL;
	if (level && z->classes > !z->masked) {
		g->more = pool_take(&t->blocks);
		memset(g->more, 0, IOVA_MORE * sizeof *g->more);
		for (int k = !z->masked; k < z->classes; k++)
			g->more[k] = pool_take(&t->blocks);
	}
	return g;
}

static void gaps_give(iova_tree *t, const iova_zone *z, int level, iova_gaps *g)
{
	if (g->more) {
		for (int k = !z->masked; k < z->classes; k++)
			pool_give(&t->blocks, g->more[k]);
		pool_give(&t->blocks, g->more);
	}
	pool_give(level ? &t->sizes->inners : &t->blocks, g);
}

static void gaps_note(const iova_tree *t, const iova_zone *z, iova_gaps *up, int level, uint64_t i,
		      iova_gaps *g)
{
	up->child[i] = g;
	for (int k = !z->masked; k < z->classes; k++)
		up->more[k]->at[i] = gaps_number(t, z, level - 1, g, k);
}

/* Split child i of a node at `level` that has room. */
static void gaps_split(iova_tree *t, const iova_zone *z, iova_gaps *up, int level, uint32_t i)
{
	iova_gaps *low = up->child[i], *high = gaps_take(t, z, level - 1);
	uint64_t half = SIZES_LANES / 2;

	high->count = SIZES_LANES - half;
	gaps_move(z, level - 1, high, 0, low, half, high->count);
	low->count = half;
	gaps_fill(low);
	gaps_fill(high);
	gaps_move(z, level, up, i + 2, up, i + 1, up->count - i - 1);
	up->count++;
	up->size[i + 1] = high->size[0];
	up->start[i + 1] = high->start[0];
	gaps_note(t, z, up, level, i, low);
	gaps_note(t, z, up, level, i + 1, high);
}

/* Make sure that the gaps of one change can be noted. */
static int sizes_ready(iova_tree *t)
{
	size_t nodes = 2 * ((size_t)t->sizes->all.height + 2);

	return pool_reserve(t, &t->sizes->inners, nodes) &&
	       pool_reserve(t, &t->blocks, nodes * ((size_t)t->classes + 2) + 2 +
						   ((size_t)t->height + 4) * (inner_blocks(t) + 1));
}

static __attribute__((noinline)) void zone_add(iova_tree *t, iova_zone *z, uint64_t start,
					       uint64_t size)
{
	iova_gaps *g = z->root;
	uint32_t i;

	if (g->count == SIZES_LANES) {
		g = gaps_take(t, z, ++z->height);
		g->count = 1;
		g->size[0] = g->start[0] = 0;
		gaps_fill(g);
		gaps_note(t, z, g, z->height, 0, z->root);
		z->root = g;
	}
	for (int level = z->height; level; level--) {
		i = gaps_seek(g, size, start);
		i = i ? i - 1 : 0;
		if (((iova_gaps *)g->child[i])->count == SIZES_LANES) {
			gaps_split(t, z, g, level, i);
			i = gaps_seek(g, size, start);
			i = i ? i - 1 : 0;
		}
		if (z->masked)
			g->more[0]->at[i] |= zone_bit(z, start);
		for (int k = 1; k < z->classes; k++) {
			uint64_t most = usable(start, size, t->mask[k]);

			if (g->more[k]->at[i] < most)
				g->more[k]->at[i] = most;
		}
		g = g->child[i];
	}
	i = gaps_seek(g, size, start);
	pairs_open(g->size, i, size);
	pairs_open(g->start, i, start);
	g->count++;
	z->count++;
}

IOVA_INLINE void gaps_down(const iova_zone *z, iova_gaps_path *p, uint64_t size, uint64_t start)
{
	iova_gaps *g = z->root;

	for (int level = z->height; level; level--) {
		uint32_t i = gaps_seek(g, size, start);

		p->node[level] = g;
		p->at[level] = i ? i - 1 : 0;
		g = g->child[p->at[level]];
	}
	p->leaf = g;
}

/* Join sparse neighbours below the node at `level` of the path. */
static void gaps_join(iova_tree *t, const iova_zone *z, iova_gaps_path *p, int level)
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
	gaps_move(z, level - 1, low, low->count, high, 0, high->count);
	low->count += high->count;
	gaps_give(t, z, level - 1, high);
	gaps_move(z, level, up, i + 1, up, i + 2, up->count - i - 2);
	up->count--;
	gaps_fill(up);
	gaps_note(t, z, up, level, i, low);
}

/* Take a gap out. Entry `i` of the path's leaf is where it was found, or may be anything. */
static __attribute__((noinline)) void zone_drop(iova_tree *t, iova_zone *z, iova_gaps_path *p,
						int found, uint64_t start, uint64_t size)
{
	iova_gaps *g = p->leaf;
	uint32_t i = (uint32_t)found;

	if (found < 0 || g->size[i] != size || g->start[i] != start) {
		gaps_down(z, p, size, start);
		g = p->leaf;
		i = gaps_seek(g, size, start) - 1;
	}
	g->count--;
	z->count--;
	/* SAFETY: a leaf of gaps lies in a block that is larger than it by more than a lane. */
	pairs_close(g->size, i);
	pairs_close(g->start, i);
	g->size[SIZES_LANES - 1] = g->start[SIZES_LANES - 1] = ~(uint64_t)0;
	for (int k = !z->masked; k < z->classes; k++) {
		uint64_t most = k ? usable(start, size, t->mask[k]) : 0, now;

		for (int level = 1; level <= z->height; level++) {
			uint64_t *at = p->node[level]->more[k]->at + p->at[level];

			if (k && *at != most)
				break;
			now = gaps_number(t, z, level - 1, p->node[level]->child[p->at[level]], k);
			if (!k && *at == now)
				break;
			*at = now;
		}
	}
	for (int level = 1; level <= z->height; level++) {
		iova_gaps *below = p->node[level]->child[p->at[level]];

		if (below->count > SIZES_LANES / 4)
			break;
		gaps_join(t, z, p, level);
	}
	while (z->height && z->root->count == 1) {
		g = z->root;
		z->root = g->child[0];
		gaps_give(t, z, z->height--, g);
	}
}

/* The first gap from (size, start) on, in this order, that has `need` units at alignment k and starts
 * in one of the slots: its place in the path's leaf, or -1. Only of one of both may much be asked.
 */
IOVA_INLINE int zone_next(const iova_tree *t, const iova_zone *z, iova_gaps_path *p, int k,
			  uint64_t need, uint64_t slots, uint64_t *size, uint64_t *start)
{
	const int any = slots == ~(uint64_t)0;
	uint64_t i;
	int level;

	gaps_down(z, p, *size, *start);
	i = gaps_seek(p->leaf, *size, *start);
	if (i && p->leaf->size[i - 1] == *size && p->leaf->start[i - 1] == *start)
		i--;
	for (level = 0;;) {
		for (; i < p->leaf->count; i++) {
			if (usable(p->leaf->start[i], p->leaf->size[i], t->mask[k]) >= need &&
			    (any || zone_bit(z, p->leaf->start[i]) & slots)) {
				*size = p->leaf->size[i];
				*start = p->leaf->start[i];
				return (int)i;
			}
		}
		/* Up to where a later child has it, and down again. */
		for (level++; level <= z->height; level++) {
			iova_gaps *g = p->node[level];

			for (i = p->at[level] + 1; i < g->count; i++)
				if ((!k || g->more[k]->at[i] >= need) &&
				    (any || g->more[0]->at[i] & slots))
					break;
			if (i < g->count)
				break;
		}
		if (level > z->height)
			return -1;
		p->at[level] = (uint32_t)i;
		while (level) {
			iova_gaps *g = p->node[level]->child[p->at[level]];

			level--;
			if (!level) {
				p->leaf = g;
				break;
			}
			for (i = 0; i + 1 < g->count; i++)
				if ((!k || g->more[k]->at[i] >= need) &&
				    (any || g->more[0]->at[i] & slots))
					break;
			p->node[level] = g;
			p->at[level] = (uint32_t)i;
		}
		i = 0;
	}
}

/* The same of all gaps, wherever they are. */
IOVA_INLINE int sizes_next(const iova_tree *t, int k, uint64_t need, uint64_t *size, uint64_t *start)
{
	iova_sizes *s = t->sizes;

	s->found_at = -1; /* the path changes */
	s->found_at = zone_next(t, &s->all, &s->found, k, need, ~(uint64_t)0, size, start);
	return s->found_at >= 0;
}

static void gaps_clear(iova_tree *t, const iova_zone *z, int level, iova_gaps *g)
{
	for (uint64_t i = 0; level && i < g->count; i++)
		gaps_clear(t, z, level - 1, g->child[i]);
	gaps_give(t, z, level, g);
}

static size_t gaps_count(const iova_gaps *g, int level)
{
	size_t number = 1;

	for (uint64_t i = 0; level > 1 && i < g->count; i++)
		number += gaps_count(g->child[i], level - 1);
	return level ? number : 0;
}

/* Give each inner node plane k. */
static void gaps_build(iova_tree *t, const iova_zone *z, iova_gaps *g, int level, int k)
{
	if (!level)
		return;
	if (!g->more) {
		g->more = pool_take(&t->blocks);
		memset(g->more, 0, IOVA_MORE * sizeof *g->more);
	}
	g->more[k] = pool_take(&t->blocks);
	for (uint64_t i = 0; i < g->count; i++) {
		gaps_build(t, z, g->child[i], level - 1, k);
		g->more[k]->at[i] = gaps_number(t, z, level - 1, g->child[i], k);
	}
}
