# SPDX-License-Identifier: Apache-2.0
"""The host: facts with their sources, and the judge that turns them into usable ranges."""
