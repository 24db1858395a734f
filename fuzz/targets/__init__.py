# SPDX-License-Identifier: Apache-2.0
"""Targets for a fuzzer: each module has `one_input(data)`."""
