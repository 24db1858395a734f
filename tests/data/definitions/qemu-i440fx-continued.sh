#!/usr/bin/env bash
set -euo pipefail

RIG=/srv/rig
GPU=02:00.0

exec qemu-system-x86_64 \
  -name guest \
  -machine pc,accel=kvm \
  -cpu host,-x2apic \
  -smp 4 \
  -m 4096 \
  -rtc base=localtime \
  -nodefaults \
  -display none \
  -device VGA,id=stdvga,addr=0x2 \
  -monitor unix:"$RIG/mon.sock",server,nowait \
  -drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/edk2/x64/OVMF_CODE.4m.fd \
  -drive if=pflash,format=raw,unit=1,file="$RIG/OVMF_VARS.fd" \
  -drive file="$RIG/disk.raw",format=raw,if=ide,index=0,media=disk \
  -netdev user,id=net0 \
  -device e1000,netdev=net0,bus=pci.0,addr=0x3 \
  -device vfio-pci,host="$GPU",id=card,bus=pci.0,addr=0x4,\
romfile="$RIG/vbios.rom" \
  -boot order=c,menu=off \
  "$@"
