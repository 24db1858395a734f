# SPDX-License-Identifier: Apache-2.0
"""Types of the compiled engine: to type checkers and editors its class is the public one."""

from vmm_iova.allocator import IovaAllocator as Core

__all__ = ["Core"]
