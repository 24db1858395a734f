# SPDX-License-Identifier: Apache-2.0
"""How fast the allocator is, beside others, and how to put your own beside it."""
