# SPDX-License-Identifier: Apache-2.0
"""What to type against a cause: each remedy is worded here and nowhere else.

Text and placeholders, no logic: which remedies help, with which numbers and in which order, is
`diagnosis.advice`'s. A placeholder is named for its value: `{bits}`, `{kib}`, `{bdf}`. How a
machine is given fewer address bits or a larger window on its VMM's command line stands in its own
file (`machines`), as every other option of it does.

Each remedy says where it was tried, or the source that it rests on; what was not tried is marked
so wherever it is printed, and `tests/ground/test_remedies.py` lists it.
"""

from vmm_iova.remedies.addresses import *  # noqa: F403
from vmm_iova.remedies.devices import *  # noqa: F403
from vmm_iova.remedies.layouts import *  # noqa: F403
from vmm_iova.remedies.limits import *  # noqa: F403
from vmm_iova.remedies.questions import *  # noqa: F403
from vmm_iova.remedies.wording import Remedy as Remedy
