/* SPDX-License-Identifier: Apache-2.0
 *
 * Every invariant of the tree, in words. Part of plain.c.
 */
#define MUST(truth, words)            \
	do {                          \
		if (!(truth))         \
			return words; \
	} while (0)

static void leaf_read(const iova_leaf *l, iova_entry *e)
{
	for (uint32_t i = 0; i < l->count; i++) {
		e[i].start = leaf_start(l, i);
		e[i].len = leaf_stop(l, i) - e[i].start;
		e[i].fixed = (int)(l->fixed >> i & 1);
	}
}

static const char *check_leaf(const iova_leaf *l, uint64_t above)
{
	iova_entry e[IOVA_LANES];
	iova_leaf same;

	MUST(l->count >= 1 && l->count <= IOVA_LANES, "a leaf has 1 to 64 entries");
	MUST(l->zero == 0, "the lane before the first says where it starts");
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
		uint64_t next = i + 1 < n->count ? (uint64_t)key_of((uint64_t)n->key.at[i + 1]) : above;
		int64_t key;
		const char *wrong;

		if (i >= n->count) {
			MUST(n->key.at[i] == key_of(~(uint64_t)0), "unused keys are the highest");
			for (int k = 0; k < t->classes; k++)
				MUST(inner_number(n, k, i) == 0, "unused numbers are 0");
			continue;
		}
		wrong = level == 1 ? check_leaf(n->child[i], next)
				   : check_inner(t, n->child[i], level - 1, next, 0);
		if (wrong)
			return wrong;
		key = level == 1 ? key_of(((iova_leaf *)n->child[i])->base)
				 : ((iova_inner *)n->child[i])->key.at[0];
		MUST(n->key.at[i] == key, "a key is where the first entry below starts");
		MUST(i == 0 || n->key.at[i - 1] < key, "keys are ascending");
		for (int k = 0; k < t->classes; k++)
			MUST(inner_number(n, k, i) == child_number(t, level, n->child[i], k),
			     "a plane tells the most that can be had below");
		MUST(!t->sums || n->more[IOVA_SUM]->at[i] ==
					 child_number(t, level, n->child[i], IOVA_SUM),
		     "the plane of sums adds up");
	}
	for (int g = 0; g < 8; g++) {
		MUST(n->key.top[g] == n->key.at[8 * g], "the short list of keys is up to date");
		MUST(n->max.top[g] == near_max8(n->max.at + 8 * g),
		     "the short list of the largest gaps is up to date");
		for (int k = 1; k < t->classes; k++)
			MUST(n->more[k]->top[g] == max8(n->more[k]->at + 8 * g),
			     "the short list of a plane is up to date");
	}
	return NULL;
}

static const char *check_gaps(const iova_tree *t, const iova_zone *z, const iova_gaps *g, int level,
			      uint64_t *keys)
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
		for (int k = !z->masked; k < z->classes; k++)
			MUST(g->more[k]->at[i] == gaps_number(t, z, level - 1, g->child[i], k),
			     "a plane of gaps tells the most that can be had below, or the slots");
		{
			const char *wrong = check_gaps(t, z, g->child[i], level - 1, keys);

			if (wrong)
				return wrong;
		}
	}
	return NULL;
}

/* Check a zone, which has the gaps that start in [low, last], and those that were made of its slots. */
static const char *check_zone(const iova_tree *t, const iova_zone *z, uint64_t low, uint64_t last)
{
	const char *wrong;
	uint64_t keys = 0, gaps = 0;
	iova_path p;
	int more = 1;

	wrong = check_gaps(t, z, z->root, z->height, &keys);
	if (wrong)
		return wrong;
	memset(&p, 0, sizeof p);
	for (path_down(t, &p, low); more; more = path_step(t, &p, 1)) {
		for (uint32_t i = 0; i < p.leaf->count; i++) {
			uint64_t size = leaf_gap(p.leaf, i), start = leaf_stop(p.leaf, i);
			uint64_t same_size = size, same_start = start;
			iova_gaps_path found;

			if (!size || start < low || start > last)
				continue;
			gaps++;
			MUST(zone_holds(z, start), "a zone has room for its gaps");
			MUST(zone_next(t, z, &found, 0, 1, ~(uint64_t)0, &same_size,
				       &same_start) >= 0 &&
				     same_size == size && same_start == start,
			     "every gap is in the order by size");
		}
		if (leaf_start(p.leaf, 0) > last)
			break;
	}
	MUST(gaps == keys && keys == z->count, "the order by size has no gap that is gone");
	for (uint32_t i = 0; i < 64 && !wrong; i++) {
		if (z->slot[i]) {
			MUST(z->masked && z->slot[i]->shift < z->shift, "a slot's zone is smaller");
			wrong = check_zone(t, z->slot[i], slot_low(z, i), slot_last(z, i));
		}
	}
	return wrong;
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
const char *iova_check(const iova_tree *t)
{
	const char *wrong = check_inner(t, t->root, t->height, t->top, 1);

	if (!wrong)
		wrong = check_pool(&t->blocks);
	if (!wrong)
		wrong = check_pool(&t->inners);
	if (wrong || !t->sizes)
		return wrong;
	return check_zone(t, &t->sizes->all, 0, ~(uint64_t)0);
}
