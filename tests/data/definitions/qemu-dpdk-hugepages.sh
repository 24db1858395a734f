qemu-system-x86_64 \
    -enable-kvm \
    -cpu host \
    -smp 8 \
    -m 16G \
    -mem-prealloc \
    -mem-path /dev/hugepages \
    -device vfio-pci,host=01:00.0
