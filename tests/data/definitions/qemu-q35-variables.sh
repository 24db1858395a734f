#!/usr/bin/env bash
# A guest with a card behind a PCI bridge, on q35 with SMM.
set -euo pipefail

RIG=/srv/rig
GPU=02:00.0

cd "$RIG"
cp -f /usr/share/edk2/x64/OVMF_VARS.4m.fd "$RIG/OVMF_VARS.fd"

# shellcheck disable=SC2086
exec qemu-system-x86_64 \
  -name guest-q35 \
  -machine q35,smm=on,accel=kvm \
  -cpu host,-x2apic \
  -smp 2 \
  -m 4096 \
  -rtc base=localtime \
  -nodefaults \
  -display none \
  -vga std \
  -monitor unix:"$RIG/mon.sock",server,nowait \
  -serial file:"$RIG/serial.log" \
  -drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/edk2/x64/OVMF_CODE.4m.fd \
  -drive if=pflash,format=raw,unit=1,file="$RIG/OVMF_VARS.fd" \
  -drive if=none,id=disk,format=raw,file="$RIG/disk.raw" \
  -device piix3-ide,id=ide0 \
  -device ide-hd,drive=disk,bus=ide0.0 \
  -netdev user,id=net0 \
  -device e1000,netdev=net0,bus=pcie.0,addr=0x3 \
  -device pcie-pci-bridge,id=br0,bus=pcie.0,addr=0x5 \
  -device "vfio-pci,host=$GPU,id=card,bus=br0,addr=0x0,romfile=$RIG/vbios.rom" \
  -boot order=c \
  "$@"
