/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a request goes: the first, the last or the smallest gap that fits. Part of code.h.
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

/* Best fit: the order by size tells the smallest gap; but the gaps that an edge of the window
 * cuts have another size there, and those outside do not count. Sizes, and gaps of the window by
 * address, are looked at in turns, so the cost is that of the shorter of both lists.
 */
IOVA_INLINE int choose_best(const iova_tree *t, iova_path *p, uint32_t *entry, uint64_t need, int k,
		       uint64_t low, uint64_t high, uint64_t *place)
{
	uint64_t mask = t->mask[k], at = 0, best_size = 0, best_start = 0, best_at = 0;
	uint64_t size = need, start = 0, from = low;
	int found = 0, whole = low == 0 && high == t->top - 1;

	if (!whole) {
		uint64_t edges[2] = { low, high };

		for (int e = 0; e < 2; e++) {
			uint64_t first, last;
			uint32_t i;

			path_down(t, p, edges[e]);
			i = leaf_seek(p->leaf, edges[e]);
			if (!gap_place(p->leaf, i, need, mask, low, high, &at))
				continue;
			first = leaf_stop(p->leaf, i);
			last = leaf_next(p->leaf, i) - 1;
			first = first < low ? low : first;
			last = last > high ? high : last;
			if (!found || last - first + 1 < best_size) {
				best_size = last - first + 1;
				best_start = first;
				best_at = at;
				found = 1;
			}
		}
	}
	while (sizes_next(t, k, need, &size, &start)) {
		if (found && (size > best_size || (size == best_size && start >= best_start)))
			break;
		if (whole || (start >= low && start <= high && size - 1 <= high - start)) {
			best_at = (start + mask) & ~mask;
			found = 1;
			break;
		}
		/* On to where the next that counts may be: many gaps of one size are one step. */
		if (start < low)
			start = low;
		else if (start <= high)
			start++;
		else if (++size == 0)
			break;
		else
			start = 0;
		/* In turn: one of the window's gaps. */
		if (from > high || !choose_first(t, p, entry, need, k, from, high, &at))
			break;
		{
			uint64_t first = leaf_stop(p->leaf, *entry);
			uint64_t last = leaf_next(p->leaf, *entry) - 1;

			first = first < low ? low : first;
			last = last > high ? high : last;
			if (!found || last - first + 1 < best_size ||
			    (last - first + 1 == best_size && first < best_start)) {
				best_size = last - first + 1;
				best_start = first;
				best_at = at;
				found = 1;
			}
			from = last + 1;
			if (from == 0)
				break;
		}
	}
	if (!found)
		return 0;
	path_down(t, p, best_at);
	*entry = leaf_seek(p->leaf, best_at);
	*place = best_at;
	return 1;
}
