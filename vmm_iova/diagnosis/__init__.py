# SPDX-License-Identifier: Apache-2.0
"""Why a call is refused, and what to type against it."""
