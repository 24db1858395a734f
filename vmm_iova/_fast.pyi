# SPDX-License-Identifier: Apache-2.0
"""Types of the compiled engine. What its methods promise is written in `allocator.pure.Core`."""

from vmm_iova.allocator.pure import Core as _PureCore

class Core(_PureCore): ...
