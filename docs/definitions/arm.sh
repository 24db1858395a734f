#!/bin/sh
exec qemu-system-aarch64 \
  -machine virt,gic-version=3 -cpu host -accel kvm \
  -m 8G -smp 16 \
  -bios /usr/share/AAVMF/AAVMF_CODE.fd \
  -device vfio-pci,host=0002:01:00.0 \
  -nographic
