/* SPDX-License-Identifier: Apache-2.0
 *
 * The tree for every CPU of the architecture, and what need not be compiled twice.
 */
#include "code.h"

const iova_ops iova_plain = {
	iova_allocate, iova_insert, iova_release, iova_mark, iova_find, iova_find_many, iova_call,
};
const iova_ops *iova_now = &iova_plain;

#ifdef IOVA_HAS_WIDE
static __attribute__((constructor)) void iova_look(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
	    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
		iova_now = &iova_wide;
}
#endif

#include "ranges.h"
#include "check.h"

void iova_tree_free(iova_tree *t)
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
iova_tree *iova_tree_new(const iova_entry *entries, size_t count, uint64_t top,
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
		if (i ? !shape_room(t, entries[i].start) : !pool_reserve(t, &t->blocks, 1))
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

/* Whether the leaves are too many for the nearest caches, so that calling them early pays. */
int iova_far(const iova_tree *t)
{
	return t->blocks.bytes > IOVA_NEAR;
}

/* Bytes that the tree holds. */
uint64_t iova_bytes(const iova_tree *t)
{
	return sizeof *t + t->blocks.bytes + t->inners.bytes +
	       (t->sizes ? sizeof *t->sizes + t->sizes->inners.bytes : 0);
}

/* Let the tree have only so many more pieces of memory: tests see what happens then. */
void iova_limit(iova_tree *t, uint64_t chunks)
{
	t->fail_after = chunks;
}
