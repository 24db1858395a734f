# SPDX-License-Identifier: Apache-2.0
"""The VM as people have it: libvirt, QEMU, Proxmox, Cloud Hypervisor and Firecracker.

One way for data: a text is recognised, its reader turns it into options of its VMM, and the options
into a `Definition`: guests, devices, and what was not understood. The way back is `changes`.
"""
