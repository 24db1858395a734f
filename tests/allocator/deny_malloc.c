/* SPDX-License-Identifier: Apache-2.0
 *
 * To be preloaded: refuses one call for memory that comes from the code of one library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static unsigned long first, last;
static long left = -1;

/* From the next call on, let so many through, refuse one, and then no more; -1 refuses none. */
void deny_after(unsigned long start, unsigned long stop, long calls)
{
	first = start;
	last = stop;
	left = calls;
}

/* How many calls are still let through; -1 when one was refused. */
long deny_left(void)
{
	return left;
}

static int refused(void *from)
{
	unsigned long at = (unsigned long)from;

	if (left < 0 || at < first || at >= last)
		return 0;
	return left-- == 0;
}

#define REFUSE(result)                                     \
	do {                                               \
		if (refused(__builtin_return_address(0))) { \
			errno = ENOMEM;                    \
			return result;                     \
		}                                          \
	} while (0)

void *malloc(size_t size)
{
	REFUSE(NULL);
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	REFUSE(NULL);
	return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
	REFUSE(NULL);
	return __libc_realloc(block, size);
}

int posix_memalign(void **block, size_t align, size_t size)
{
	REFUSE(ENOMEM);
	*block = __libc_memalign(align, size);
	return *block ? 0 : ENOMEM;
}
