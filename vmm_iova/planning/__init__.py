# SPDX-License-Identifier: Apache-2.0
"""Where a guest goes on a host."""
