/* SPDX-License-Identifier: Apache-2.0
 *
 * Workload W1 on the tree alone: fill with N ranges of 1 to 512 pages (p ~ size^-1.5), age with 4N
 * steps, then PAIRS steps of one release and one first fit, which `measured` does and nothing else,
 * so that a profiler counts them alone. bench/tree_counts.py builds and counts.
 *
 *   tree_counts N PAIRS [STRETCHES]    prints a sum of the layout, and ns a pair if timed
 *   tree_counts window N PAIRS         best fit in a window, at its worst
 *   tree_counts aligned N PAIRS        the same at an alignment of two units
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tree.h"

#define PAGES 512
#define TOP ((uint64_t)1 << 36)

static uint64_t state = 7;
static double weights[PAGES + 1];

static uint64_t draw(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15; /* splitmix64 */

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t draw_size(void)
{
	double at = (double)(draw() >> 11) / 9007199254740992.0 * weights[PAGES];
	int low = 1, high = PAGES;

	while (low < high) {
		int middle = (low + high) / 2;

		if (weights[middle] > at)
			high = middle;
		else
			low = middle + 1;
	}
	return (uint64_t)low;
}

static uint64_t take(iova_tree *t, uint64_t pages)
{
	uint64_t place;

	if (iova_now->allocate(t, pages, 0, IOVA_FIRST, 0, TOP - 1, &place) != IOVA_OK)
		abort();
	return place;
}

static __attribute__((noinline)) void measured(iova_tree *t, uint64_t *held, const uint32_t *which,
					       const uint64_t *pages, size_t pairs)
{
	for (size_t i = 0; i < pairs; i++) {
		uint64_t len = 0;

		if (iova_now->release(t, held[which[i]], &len) != IOVA_OK)
			abort();
		held[which[i]] = take(t, pages[i]);
	}
}

static int by_number(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static __attribute__((noinline)) uint64_t measured_window(iova_tree *t, const uint64_t (*windows)[2],
							  size_t pairs, int shift)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < pairs; i++) {
		uint64_t place, len = 0;

		if (iova_now->allocate(t, 1, shift, IOVA_BEST, windows[i][0], windows[i][1],
				       &place) != IOVA_OK ||
		    iova_now->release(t, place, &len) != IOVA_OK)
			abort();
		sum = (sum ^ place) * 0x100000001b3;
	}
	return sum;
}

/* N gaps of as many sizes, all of which fit. Those in the middle third are larger than the others: so
 * a window there leaves two thirds out that fit better, and has a third that fit.
 */
static int window(size_t gaps, size_t pairs, int shift)
{
	const iova_entry bounds[] = { { 0, 16, 1 } };
	iova_tree *t = iova_tree_new(bounds, 1, TOP, 0);
	uint64_t(*windows)[2] = malloc(pairs * sizeof *windows), at = 16, from = 0, to = 0, place;

	if (!t || !windows)
		abort();
	for (size_t i = 0; i < gaps; i++) {
		/* All numbers below `gaps`, in no order. */
		uint64_t size = 1 + i * 7919 % gaps;

		if (i == gaps / 3)
			from = at;
		if (i == gaps * 2 / 3)
			to = at - 1;
		at += size + (i >= gaps / 3 && i < gaps * 2 / 3 ? gaps : 0);
		if (iova_now->insert(t, at++, 1) != IOVA_OK)
			abort();
	}
	for (size_t i = 0; i < pairs; i++) {
		uint64_t tenth = (to - from) / 10;

		windows[i][0] = from + draw() % tenth;
		windows[i][1] = to - draw() % tenth;
		/* What is made when it is first needed is made before. */
		if (iova_now->allocate(t, 1, shift, IOVA_BEST, windows[i][0], windows[i][1],
				       &place) != IOVA_OK)
			abort();
		iova_now->release(t, place, &(uint64_t){ 0 });
	}
	printf("layout %016llx bytes %.1f\n",
	       (unsigned long long)measured_window(t, (const uint64_t(*)[2])windows, pairs, shift),
	       (double)iova_bytes(t) / (double)gaps);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "window"))
		return window(strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0), 0);
	if (argc == 4 && !strcmp(argv[1], "aligned"))
		return window(strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0), 1);

	size_t live = strtoul(argc > 1 ? argv[1] : "1000", NULL, 0);
	size_t pairs = strtoul(argc > 2 ? argv[2] : "20000", NULL, 0);
	size_t stretches = strtoul(argc > 3 ? argv[3] : "1", NULL, 0);
	/* 64 KiB to 2^48 without the MSI window of x86 and the HyperTransport range of AMD. */
	const iova_entry fixed[] = {
		{ 0, 16, 1 }, { 0xfee00, 0x100, 1 }, { 0xfd00000, 0x300000, 1 },
	};
	iova_tree *t = iova_tree_new(fixed, 3, TOP, 0);
	uint64_t *held = malloc(live * sizeof *held), sum = 0;
	uint32_t *which = malloc(pairs * sizeof *which);
	uint64_t *pages = malloc(pairs * sizeof *pages);
	double *times = malloc(stretches * sizeof *times);

	if (!t || !held || !which || !pages || !times)
		abort();
	for (int i = 1; i <= PAGES; i++)
		weights[i] = weights[i - 1] + 1 / ((double)i * __builtin_sqrt(i));
	for (size_t i = 0; i < live; i++)
		held[i] = take(t, draw_size());
	for (size_t i = 0; i < 4 * live; i++) {
		uint64_t *one = held + draw() % live, len = 0;

		iova_now->release(t, *one, &len);
		*one = take(t, draw_size());
	}
	for (size_t s = 0; s < stretches; s++) {
		struct timespec from, to;

		for (size_t i = 0; i < pairs; i++) {
			which[i] = (uint32_t)(draw() % live);
			pages[i] = draw_size();
		}
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
		measured(t, held, which, pages, pairs);
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
		times[s] = ((double)(to.tv_sec - from.tv_sec) * 1e9 +
			    (double)(to.tv_nsec - from.tv_nsec)) / (double)pairs;
	}
	for (size_t i = 0; i < live; i++)
		sum = (sum ^ held[i]) * 0x100000001b3;
	printf("layout %016llx bytes %.1f", (unsigned long long)sum,
	       (double)iova_bytes(t) / (double)live);
	if (stretches > 1) {
		qsort(times, stretches, sizeof *times, by_number);
		printf(" ns %.1f", times[stretches / 4]);
	}
	printf("\n");
	return 0;
}
