# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: what is read, typed, shared or interrupted, from random bytes."""
