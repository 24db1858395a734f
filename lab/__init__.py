# SPDX-License-Identifier: Apache-2.0
"""The kernel lab: real kernels under software emulation, with the project's tests inside."""
