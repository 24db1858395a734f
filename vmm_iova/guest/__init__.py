# SPDX-License-Identifier: Apache-2.0
"""The guest: what a VMM wants placed, and where it goes."""
