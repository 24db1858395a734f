/* SPDX-License-Identifier: Apache-2.0
 *
 * The tree for x86-64 with AVX2 and what came with it.
 */
#include "tree.h"

#ifdef IOVA_HAS_WIDE
#define IOVA_WIDE
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt"))), apply_to = function)
#include "code.h"
#pragma clang attribute pop
#else
#pragma GCC target("avx2,bmi,bmi2,popcnt")
#include "code.h"
#endif

const iova_ops iova_wide = {
	iova_allocate, iova_insert, iova_release, iova_mark, iova_find, iova_find_many, iova_call,
};
#endif
