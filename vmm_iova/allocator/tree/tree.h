/* SPDX-License-Identifier: Apache-2.0
 *
 * The set of taken ranges, in units of one granule, and the searches over the gaps between them: what
 * the engine sees of it. How it works stands in code.h.
 *
 * An entry is [start, start + len). Fixed entries are what may not be used: the spaces between the
 * usable ranges, an entry of no length at each seam between two that touch, and, where address 0
 * is usable but must not be chosen, one unit at 0 that only a placed allocation replaces. An
 * entry at 0 always exists, so every gap has an entry below it, which owns it.
 *
 * Numbers wrap at 2^64: `top` is 0 when the space has 2^64 units. Nothing here touches Python;
 * every function may run without the GIL, and none may run beside another on the same tree.
 */
#ifndef VMM_IOVA_TREE_H
#define VMM_IOVA_TREE_H

#include <stddef.h>
#include <stdint.h>

enum { IOVA_OK, IOVA_NONE, IOVA_TAKEN, IOVA_OTHER, IOVA_NOMEM };
enum { IOVA_FIRST, IOVA_LAST, IOVA_BEST };
enum { IOVA_ABREAST = 16 }; /* items of a batch whose leaves are called at once */

typedef struct iova_tree iova_tree;

typedef struct iova_entry {
	uint64_t start, len;
	int fixed;
} iova_entry;

typedef struct iova_span {
	uint64_t first, last; /* units, closed */
} iova_span;

/* What a refusal tells of the gaps of a window: the largest, the largest size that fits at an
 * alignment, and how many units are free, which are 2^64 where it is 0 although there is one.
 */
typedef struct iova_facts {
	int any;
	uint64_t first, last;
	uint64_t aligned;
	uint64_t total;
} iova_facts;

/* What is done often: compiled twice where that pays, in plain.c and wide.c. */
typedef struct {
	int (*allocate)(iova_tree *, uint64_t len, int shift, int policy, uint64_t low, uint64_t high,
			uint64_t *place);
	int (*insert)(iova_tree *, uint64_t start, uint64_t len);
	int (*release)(iova_tree *, uint64_t start, uint64_t *len);
	int (*mark)(iova_tree *, uint64_t start, uint64_t *len, int fixed);
	void (*find)(const iova_tree *, uint64_t x, iova_entry *entry);
	void (*find_many)(const iova_tree *, const uint64_t *x, size_t count, int shift,
			  uint64_t *starts, uint64_t *lasts);
	void (*call)(const iova_tree *, const uint64_t *x, size_t count, size_t from, int shift);
} iova_ops;

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

extern const iova_ops *iova_now; /* those for the CPU that this runs on */
extern const iova_ops iova_plain;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(VMM_IOVA_BASELINE)
#define IOVA_HAS_WIDE
extern const iova_ops iova_wide;
#endif

iova_tree *iova_tree_new(const iova_entry *entries, size_t count, uint64_t top, int keep_zero);
iova_tree *iova_tree_over(const iova_span *usable, size_t count, uint64_t top, int spare_zero,
			  const iova_tree *from, size_t held);
void iova_tree_free(iova_tree *t);
size_t iova_outside(const iova_tree *t, const iova_span *ranges, size_t count, iova_entry *out,
		    size_t room);
size_t iova_free_spans(const iova_tree *t, const iova_span *ranges, size_t count, uint64_t low,
		       uint64_t high, iova_span *out, size_t room);
int iova_overlap(const iova_tree *t, uint64_t low, uint64_t high, iova_entry *own);
int iova_tell(iova_tree *t, int shift, uint64_t low, uint64_t high, iova_facts *f);
int iova_far(const iova_tree *t);
const char *iova_check(const iova_tree *t);
uint64_t iova_bytes(const iova_tree *t);
void iova_limit(iova_tree *t, uint64_t chunks);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
