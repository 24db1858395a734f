# SPDX-License-Identifier: Apache-2.0
"""Other programs' texts, read into plain facts: one reader for each, whoever uses it."""
