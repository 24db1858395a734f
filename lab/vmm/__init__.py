"""Plans compared with real QEMU and its firmware: `python -m lab.vmm`, see lab/README.md."""
