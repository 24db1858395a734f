# SPDX-License-Identifier: Apache-2.0
"""`python -m vmm_iova` is the `vmm-iova` command."""

from vmm_iova.cli import main

raise SystemExit(main())
