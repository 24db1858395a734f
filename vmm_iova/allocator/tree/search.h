/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a request goes: the first or the last gap that fits. Part of code.h.
 */
/* The lowest place in the gap above entry i, cut to [low, high]. */
IOVA_INLINE int gap_place(const iova_leaf *l, uint32_t i, uint64_t need, uint64_t mask,
			  uint64_t low, uint64_t high, uint64_t *place)
{
	uint64_t first = leaf_stop(l, i), last = leaf_next(l, i) - 1, at;

	if (!leaf_gap(l, i))
		return 0;
	first = first < low ? low : first;
	last = last > high ? high : last;
	at = (first + mask) & ~mask;
	if (at < first || at > last || need - 1 > last - at)
		return 0;
	*place = at;
	return 1;
}

IOVA_INLINE int choose_first(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
			uint64_t low, uint64_t high, uint64_t *place)
{
	uint64_t mask = t->mask[k];
	uint32_t i;

	/* The gap that `low` may cut, then the first whole one that fits. */
	path_down(t, p, low);
	i = leaf_seek(p->leaf, low);
	if (!gap_place(p->leaf, i, need, mask, low, high, place)) {
		i = leaf_first(p->leaf, mask, need, i + 1);
		if (i == IOVA_LANES) {
			if (!path_beside(t, p, k, need, 0))
				return 0;
			i = leaf_first(p->leaf, mask, need, 0);
		}
		/* One that `high` cuts too short has only higher ones above it. */
		if (!gap_place(p->leaf, i, need, mask, low, high, place))
			return 0;
	}
	*entry = i;
	return 1;
}

IOVA_INLINE int choose_last(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
		       uint64_t low, uint64_t high, uint64_t *place)
{
	uint64_t mask = t->mask[k], last, dummy;
	uint32_t i;

	path_down(t, p, high);
	i = leaf_seek(p->leaf, high);
	if (!gap_place(p->leaf, i, need, mask, low, high, &dummy)) {
		i = leaf_last(p->leaf, mask, need, i);
		if (i == IOVA_LANES) {
			if (!path_beside(t, p, k, need, 1))
				return 0;
			i = leaf_last(p->leaf, mask, need, IOVA_LANES);
		}
		if (!gap_place(p->leaf, i, need, mask, low, high, &dummy))
			return 0;
	}
	last = leaf_next(p->leaf, i) - 1;
	last = last > high ? high : last;
	*place = (last - (need - 1)) & ~mask;
	*entry = i;
	return 1;
}
