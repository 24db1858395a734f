# SPDX-License-Identifier: Apache-2.0
"""Plans compared with real QEMU and its firmware: `python -m lab.vmm`, see lab/README.md."""
