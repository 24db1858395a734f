/* SPDX-License-Identifier: Apache-2.0
 *
 * The gaps by size: a second B+tree, of (size, start), that best fit searches. Part of code.h. It
 * is built when best fit is first asked for, and kept from then on.
 */
enum { SIZES_LANES = 32 };

typedef struct {
	uint64_t count;
	iova_plane **more; /* for each alignment but the first: the most that a child can give */
	uint64_t size[SIZES_LANES];
	uint64_t start[SIZES_LANES];
	void *child[SIZES_LANES]; /* a leaf ends before these */
} iova_gaps;

typedef struct {
	iova_gaps *leaf;
	iova_gaps *node[IOVA_DEEP];
	uint32_t at[IOVA_DEEP];
} iova_gaps_path;

typedef struct iova_sizes {
	iova_gaps *root;
	int height; /* levels of inner nodes, 0 or more */
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

static __attribute__((noinline)) void sizes_add(iova_tree *t, uint64_t start, uint64_t size)
{
	iova_sizes *s = t->sizes;
	iova_gaps *g = s->root;
	uint32_t i;

	s->found_at = -1;
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
	pairs_open(g->size, i, size);
	pairs_open(g->start, i, start);
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

static __attribute__((noinline)) void sizes_drop(iova_tree *t, uint64_t start, uint64_t size)
{
	iova_sizes *s = t->sizes;
	iova_gaps_path *p = &s->found;
	iova_gaps *g = p->leaf;
	uint32_t i = (uint32_t)s->found_at;

	if (s->found_at < 0 || g->size[i] != size || g->start[i] != start) {
		gaps_down(t, p, size, start);
		g = p->leaf;
		i = gaps_seek(g, size, start) - 1;
	}
	s->found_at = -1;
	g->count--;
	/* SAFETY: a leaf of gaps lies in a block that is larger than it by more than a lane. */
	pairs_close(g->size, i);
	pairs_close(g->start, i);
	g->size[SIZES_LANES - 1] = g->start[SIZES_LANES - 1] = ~(uint64_t)0;
	for (int k = 1; k < t->classes; k++) {
		uint64_t most = usable(start, size, t->mask[k]);

		for (int level = 1; level <= s->height; level++) {
			uint64_t *at = p->node[level]->more[k]->at + p->at[level];

			if (*at != most)
				break;
			*at = gaps_number(t, level - 1, p->node[level]->child[p->at[level]], k);
		}
	}
	for (int level = 1; level <= s->height; level++) {
		iova_gaps *below = p->node[level]->child[p->at[level]];

		if (below->count > SIZES_LANES / 4)
			break;
		gaps_join(t, p, level);
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
	iova_gaps_path *p = &t->sizes->found;
	uint64_t i;
	int level;

	t->sizes->found_at = -1;
	gaps_down(t, p, *size, *start);
	i = gaps_seek(p->leaf, *size, *start);
	if (i && p->leaf->size[i - 1] == *size && p->leaf->start[i - 1] == *start)
		i--;
	for (level = 0;;) {
		for (; i < p->leaf->count; i++) {
			if (usable(p->leaf->start[i], p->leaf->size[i], t->mask[k]) >= need) {
				*size = p->leaf->size[i];
				*start = p->leaf->start[i];
				t->sizes->found_at = (int)i;
				return 1;
			}
		}
		/* Up to where a later child has it, and down again. */
		for (level++; level <= t->sizes->height; level++) {
			iova_gaps *g = p->node[level];

			for (i = p->at[level] + 1; i < g->count; i++)
				if (!k || g->more[k]->at[i] >= need)
					break;
			if (i < g->count)
				break;
		}
		if (level > t->sizes->height)
			return 0;
		p->at[level] = (uint32_t)i;
		while (level) {
			iova_gaps *g = p->node[level]->child[p->at[level]];

			level--;
			if (!level) {
				p->leaf = g;
				break;
			}
			for (i = 0; k && i + 1 < g->count && g->more[k]->at[i] < need; i++)
				;
			p->node[level] = g;
			p->at[level] = (uint32_t)i;
		}
		i = 0;
	}
}

typedef struct {
	uint64_t start, size;
} iova_gap;

/* Up to two gaps are gone, and up to two have come; those of no size do not count.
 * PERF: no loop over an array: it is read wider than it was just written, which waits.
 */
IOVA_INLINE void sizes_change(iova_tree *t, iova_gap gone, iova_gap gone_too, iova_gap come,
			      iova_gap come_too)
{
	if (gone.size)
		sizes_drop(t, gone.start, gone.size);
	if (gone_too.size)
		sizes_drop(t, gone_too.start, gone_too.size);
	if (come.size)
		sizes_add(t, come.start, come.size);
	if (come_too.size)
		sizes_add(t, come_too.start, come_too.size);
}

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
	t->sizes->found_at = -1;
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
			sizes_add(t, leaf_stop(p.leaf, i), gap);
		}
	} while (path_step(t, &p, 1));
	return 1;
}
