# SPDX-License-Identifier: Apache-2.0
"""Showing: text, JSON and SVG, and nothing else."""
