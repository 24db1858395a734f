# SPDX-License-Identifier: Apache-2.0
"""Memory maps of VMMs: models as data files, and the one who reads them."""
