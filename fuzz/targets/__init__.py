# SPDX-License-Identifier: Apache-2.0
"""One module for each target; the runner finds them by itself.

A target has `one_input(data)`, which returns for whatever it is given, or raises: that is a
finding. Optional: `seeds()` yields inputs to begin with; `MAX_LENGTH` in bytes; `INSTRUMENT`, more
modules whose branches guide. `planted.BUGS` has a bug for each target, to see that it finds one.
"""
