/* SPDX-License-Identifier: Apache-2.0
 *
 * The set of taken ranges, in units of one granule, and the searches over the gaps between them.
 *
 * An entry is [start, start + len). Fixed entries are what may not be used: the spaces between the
 * usable ranges, an entry of no length at each seam between two that touch, and, where address 0
 * is usable but must not be chosen, one unit at 0 that only a placed allocation replaces. An
 * entry at 0 always exists, so every gap has an entry below it.
 *
 * Numbers wrap at 2^64: `top` is 0 when the space has 2^64 units.
 */
#ifndef VMM_IOVA_TREE_H
#define VMM_IOVA_TREE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { IOVA_OK, IOVA_NONE, IOVA_TAKEN, IOVA_OTHER, IOVA_NOMEM };
enum { IOVA_FIRST, IOVA_LAST, IOVA_BEST };

typedef struct iova_entry {
	uint64_t start, len;
	int fixed;
} iova_entry;

typedef struct iova_tree {
	iova_entry *at;
	size_t count, room;
	uint64_t top;
	int keep_zero; /* the entry at 0 is the unit that must not be chosen */
} iova_tree;

static iova_tree *iova_tree_new(const iova_entry *entries, size_t count, uint64_t top,
				int keep_zero)
{
	iova_tree *t = malloc(sizeof *t);

	if (!t)
		return NULL;
	t->room = count + 16;
	t->at = malloc(t->room * sizeof *t->at);
	if (!t->at) {
		free(t);
		return NULL;
	}
	memcpy(t->at, entries, count * sizeof *entries);
	t->count = count;
	t->top = top;
	t->keep_zero = keep_zero;
	return t;
}

static void iova_tree_free(iova_tree *t)
{
	if (t)
		free(t->at);
	free(t);
}

/* Index of the last entry that starts at x or below. */
static size_t iova_seek(const iova_tree *t, uint64_t x)
{
	size_t low = 0, high = t->count;

	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (t->at[mid].start <= x)
			low = mid;
		else
			high = mid;
	}
	return low;
}

/* The gap above entry i as first and last unit; returns 0 when there is none. */
static int iova_gap(const iova_tree *t, size_t i, uint64_t *first, uint64_t *last)
{
	uint64_t next = i + 1 < t->count ? t->at[i + 1].start : t->top;

	*first = t->at[i].start + t->at[i].len;
	*last = next - 1;
	if (*first == next) /* no gap, or nothing below it in a space of 2^64 units */
		return *first == 0 && t->at[i].len == 0 && i + 1 == t->count;
	return 1;
}

static int iova_insert(iova_tree *t, uint64_t start, uint64_t len)
{
	size_t i = iova_seek(t, start);
	uint64_t first, last;

	if (start == 0 && t->keep_zero) {
		if (!t->at[0].fixed || (t->count > 1 && t->at[1].start < len))
			return IOVA_TAKEN;
		t->at[0].fixed = 0;
		t->at[0].len = len;
		return IOVA_OK;
	}
	if (!iova_gap(t, i, &first, &last) || start < first || start > last ||
	    len - 1 > last - start)
		return IOVA_TAKEN;
	if (t->count == t->room) {
		iova_entry *more = realloc(t->at, 2 * t->room * sizeof *more);

		if (!more)
			return IOVA_NOMEM;
		t->at = more;
		t->room *= 2;
	}
	memmove(t->at + i + 2, t->at + i + 1, (t->count - i - 1) * sizeof *t->at);
	t->at[i + 1] = (iova_entry){ start, len, 0 };
	t->count++;
	return IOVA_OK;
}

/* Where len units aligned to 1 << shift can lie in [low, high]. */
static int iova_choose(const iova_tree *t, uint64_t len, int shift, int policy, uint64_t low,
		       uint64_t high, uint64_t *place)
{
	uint64_t mask = ((uint64_t)1 << shift) - 1, best = 0;
	int found = 0;

	for (size_t i = 0; i < t->count; i++) {
		uint64_t first, last, at;

		if (!iova_gap(t, i, &first, &last))
			continue;
		first = first < low ? low : first;
		last = last > high ? high : last;
		if (first > last)
			continue;
		at = (first + mask) & ~mask;
		if (at < first || at > last || len - 1 > last - at)
			continue;
		if (policy == IOVA_LAST)
			at = (last - (len - 1)) & ~mask;
		if (policy == IOVA_BEST && found && last - first >= best)
			continue;
		best = last - first;
		*place = at;
		found = 1;
		if (policy == IOVA_FIRST)
			break;
	}
	return found ? IOVA_OK : IOVA_NONE;
}

static int iova_allocate(iova_tree *t, uint64_t len, int shift, int policy, uint64_t low,
			 uint64_t high, uint64_t *place)
{
	int result = iova_choose(t, len, shift, policy, low, high, place);

	return result == IOVA_OK ? iova_insert(t, *place, len) : result;
}

/* Take out the entry at start; *len is 0 for any length, and its length afterwards. */
static int iova_release(iova_tree *t, uint64_t start, uint64_t *len)
{
	size_t i = iova_seek(t, start);

	if (t->at[i].start != start || t->at[i].fixed)
		return IOVA_NONE;
	if (*len && t->at[i].len != *len)
		return IOVA_OTHER;
	*len = t->at[i].len;
	if (i == 0) {
		t->at[0].fixed = 1;
		t->at[0].len = 1;
		return IOVA_OK;
	}
	memmove(t->at + i, t->at + i + 1, (t->count - i - 1) * sizeof *t->at);
	t->count--;
	return IOVA_OK;
}

/* The last entry that starts at x or below. */
static void iova_find(const iova_tree *t, uint64_t x, iova_entry *entry)
{
	*entry = t->at[iova_seek(t, x)];
}

/* Walks entries upward: begin with the last that starts at x or below. */
typedef struct {
	size_t i;
} iova_cursor;

static void iova_walk(const iova_tree *t, uint64_t x, iova_cursor *c)
{
	c->i = iova_seek(t, x);
}

/* Give the entry and the gap above it (gap_first > gap_last: none); 0 when there are no more. */
static int iova_next(const iova_tree *t, iova_cursor *c, iova_entry *entry, uint64_t *gap_first,
		     uint64_t *gap_last)
{
	if (c->i >= t->count)
		return 0;
	*entry = t->at[c->i];
	if (!iova_gap(t, c->i, gap_first, gap_last)) {
		*gap_first = 1;
		*gap_last = 0;
	}
	c->i++;
	return 1;
}

#endif
