# SPDX-License-Identifier: Apache-2.0
"""Sizes, offsets and numbers against a table and against the system's own headers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmm_iova.errors import CapabilityError, RequestError
from vmm_iova.kernel import uapi, uapi_iommufd

# From the headers of Linux 7.3, compiled on x86-64; the same on every LP64 architecture.
NUMBERS = [
    (uapi.GET_API_VERSION, 0x3B64),
    (uapi.CHECK_EXTENSION, 0x3B65),
    (uapi.SET_IOMMU, 0x3B66),
    (uapi.GROUP_GET_STATUS, 0x3B67),
    (uapi.GROUP_SET_CONTAINER, 0x3B68),
    (uapi.GROUP_UNSET_CONTAINER, 0x3B69),
    (uapi.GROUP_GET_DEVICE_FD, 0x3B6A),
    (uapi.DEVICE_GET_INFO, 0x3B6B),
    (uapi.DEVICE_GET_REGION_INFO, 0x3B6C),
    (uapi.DEVICE_RESET, 0x3B6F),
    (uapi.IOMMU_GET_INFO, 0x3B70),
    (uapi.IOMMU_MAP_DMA, 0x3B71),
    (uapi.IOMMU_UNMAP_DMA, 0x3B72),
    (uapi.IOMMU_DIRTY_PAGES, 0x3B75),
    (uapi.DEVICE_BIND_IOMMUFD, 0x3B76),
    (uapi.DEVICE_ATTACH_IOMMUFD_PT, 0x3B77),
    (uapi.DEVICE_DETACH_IOMMUFD_PT, 0x3B78),
    (uapi_iommufd.DESTROY, 0x3B80),
    (uapi_iommufd.IOAS_ALLOC, 0x3B81),
    (uapi_iommufd.IOAS_ALLOW_IOVAS, 0x3B82),
    (uapi_iommufd.IOAS_COPY, 0x3B83),
    (uapi_iommufd.IOAS_IOVA_RANGES, 0x3B84),
    (uapi_iommufd.IOAS_MAP, 0x3B85),
    (uapi_iommufd.IOAS_UNMAP, 0x3B86),
    (uapi_iommufd.OPTION, 0x3B87),
    (uapi_iommufd.VFIO_IOAS, 0x3B88),
    (uapi_iommufd.HWPT_ALLOC, 0x3B89),
    (uapi_iommufd.GET_HW_INFO, 0x3B8A),
    (uapi_iommufd.HWPT_SET_DIRTY_TRACKING, 0x3B8B),
    (uapi_iommufd.HWPT_GET_DIRTY_BITMAP, 0x3B8C),
    (uapi_iommufd.IOAS_MAP_FILE, 0x3B8F),
    (uapi_iommufd.IOAS_CHANGE_PROCESS, 0x3B92),
]

SIZES = [
    (uapi.CAP_HEADER, 8, 8),
    (uapi.TYPE1_INFO, 24, 16),
    (uapi.IOVA_RANGE_HEAD, 16, 16),
    (uapi.IOVA_RANGE, 16, 16),
    (uapi.MIGRATION, 32, 32),
    (uapi.DMA_AVAIL, 12, 12),
    (uapi.DMA_MAP, 32, 32),
    (uapi.DMA_UNMAP, 24, 24),
    (uapi.BITMAP, 24, 24),
    (uapi.DIRTY, 8, 8),
    (uapi.DIRTY_RANGE, 40, 40),
    (uapi.GROUP_STATUS, 8, 8),
    (uapi.DEVICE_INFO, 24, 16),
    (uapi.REGION_INFO, 32, 32),
    (uapi.BIND, 24, 16),
    (uapi.ATTACH, 16, 12),
    (uapi.DETACH, 12, 8),
    (uapi.ZPCI_BASE, 32, 32),
    (uapi.ZPCI_GROUP, 40, 40),
    (uapi_iommufd.DESTROY_ARG, 8, 8),
    (uapi_iommufd.IOAS_ALLOC_ARG, 12, 12),
    (uapi_iommufd.ALLOW_ARG, 24, 24),
    (uapi_iommufd.COPY_ARG, 40, 40),
    (uapi_iommufd.RANGES_ARG, 32, 32),
    (uapi_iommufd.MAP_ARG, 40, 40),
    (uapi_iommufd.UNMAP_ARG, 24, 24),
    (uapi_iommufd.OPTION_ARG, 24, 24),
    (uapi_iommufd.VFIO_IOAS_ARG, 12, 12),
    (uapi_iommufd.HWPT_ALLOC_ARG, 48, 24),
    (uapi_iommufd.HW_INFO_ARG, 40, 32),
    (uapi_iommufd.SET_DIRTY_ARG, 16, 16),
    (uapi_iommufd.GET_DIRTY_ARG, 48, 48),
    (uapi_iommufd.MAP_FILE_ARG, 40, 40),
    (uapi_iommufd.CHANGE_PROCESS_ARG, 8, 8),
    (uapi_iommufd.IOVA_RANGE_ITEM, 16, 16),
    (uapi_iommufd.VTD_INFO, 24, 24),
    (uapi_iommufd.AMD_INFO, 16, 16),
]


@pytest.mark.parametrize(("number", "expected"), NUMBERS)
def test_request_number_matches_table(number: int, expected: int) -> None:
    assert expected == number & 0xFFFF


@pytest.mark.parametrize(("record", "size", "minimum"), SIZES, ids=[r.name for r, *_ in SIZES])
def test_record_size_matches_table(record: uapi.Record, size: int, minimum: int) -> None:
    assert (size, minimum) == (record.size, record.minimum)


def test_request_on_an_architecture_with_a_none_bit_sets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uapi, "_IO_NONE", 0x2000_0000)

    assert uapi.request(100) == 0x2000_3B64


# Header, C name of the structure, our record, {our field: C member} where the names differ, and
# fields without a member of their own.
HEADERS = [
    ("vfio.h", "vfio_info_cap_header", uapi.CAP_HEADER, {}),
    ("vfio.h", "vfio_iommu_type1_info", uapi.TYPE1_INFO, {}),
    ("vfio.h", "vfio_iommu_type1_info_cap_iova_range", uapi.IOVA_RANGE_HEAD, None),
    ("vfio.h", "vfio_iova_range", uapi.IOVA_RANGE, {}),
    ("vfio.h", "vfio_iommu_type1_info_cap_migration", uapi.MIGRATION, None),
    ("vfio.h", "vfio_iommu_type1_info_dma_avail", uapi.DMA_AVAIL, None),
    ("vfio.h", "vfio_iommu_type1_dma_map", uapi.DMA_MAP, {}),
    ("vfio.h", "vfio_iommu_type1_dma_unmap", uapi.DMA_UNMAP, {}),
    ("vfio.h", "vfio_bitmap", uapi.BITMAP, {}),
    ("vfio.h", "vfio_iommu_type1_dirty_bitmap", uapi.DIRTY, {}),
    (
        "vfio.h",
        "vfio_iommu_type1_dirty_bitmap_get",
        uapi.DIRTY_RANGE,
        {"pgsize": "bitmap.pgsize", "bitmap_size": "bitmap.size", "data": "bitmap.data"},
    ),
    ("vfio.h", "vfio_group_status", uapi.GROUP_STATUS, {}),
    ("vfio.h", "vfio_device_info", uapi.DEVICE_INFO, {}),
    ("vfio.h", "vfio_region_info", uapi.REGION_INFO, {}),
    ("vfio.h", "vfio_device_bind_iommufd", uapi.BIND, {}),
    ("vfio.h", "vfio_device_attach_iommufd_pt", uapi.ATTACH, {}),
    ("vfio.h", "vfio_device_detach_iommufd_pt", uapi.DETACH, {}),
    ("vfio_zdev.h", "vfio_device_info_cap_zpci_base", uapi.ZPCI_BASE, None),
    ("vfio_zdev.h", "vfio_device_info_cap_zpci_group", uapi.ZPCI_GROUP, None),
    ("iommufd.h", "iommu_destroy", uapi_iommufd.DESTROY_ARG, {}),
    ("iommufd.h", "iommu_ioas_alloc", uapi_iommufd.IOAS_ALLOC_ARG, {}),
    ("iommufd.h", "iommu_ioas_allow_iovas", uapi_iommufd.ALLOW_ARG, {}),
    ("iommufd.h", "iommu_ioas_copy", uapi_iommufd.COPY_ARG, {}),
    ("iommufd.h", "iommu_ioas_iova_ranges", uapi_iommufd.RANGES_ARG, {}),
    ("iommufd.h", "iommu_ioas_map", uapi_iommufd.MAP_ARG, {}),
    ("iommufd.h", "iommu_ioas_unmap", uapi_iommufd.UNMAP_ARG, {}),
    ("iommufd.h", "iommu_option", uapi_iommufd.OPTION_ARG, {}),
    ("iommufd.h", "iommu_vfio_ioas", uapi_iommufd.VFIO_IOAS_ARG, {}),
]


SYSTEM = Path("/usr/include/linux")


def _members(record: uapi.Record, renamed: dict[str, str] | None) -> dict[str, str]:
    """Our fields, each with the C member that it stands for."""
    heads = ("id", "version", "next") if renamed is None else ()
    fields = [field for field in record.fields if field not in heads and not field.startswith("_")]
    if record is uapi.ZPCI_GROUP:
        fields.pop()
    return {field: (renamed or {}).get(field, field) for field in fields}


def _gap(header: str, name: str) -> str | None:
    """Why this system's headers cannot tell where the members lie."""
    path = SYSTEM / header
    if not path.exists():
        return f"this machine has no {header}"
    if f"struct {name} {{" not in path.read_text("utf-8"):
        return f"this {header} is older than {name}"
    if shutil.which("cc") is None:
        return "no C compiler"
    return None


@pytest.fixture(scope="module")
def offsets_in_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Offsets of the members of every structure that the headers have: one program for all."""
    present = [item for item in HEADERS if _gap(*item[:2]) is None]
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "#include <linux/types.h>",
        *(f"#include <linux/{header}>" for header in sorted({header for header, *_ in present})),
        "int main(void) {",
        *(
            f'printf("{name} %zu\\n", offsetof(struct {name}, {member}));'
            for _, name, record, renamed in present
            for member in _members(record, renamed).values()
        ),
        "return 0; }",
    ]
    work = tmp_path_factory.mktemp("probe")
    source, program = work / "probe.c", work / "probe"
    source.write_text("\n".join(lines))
    built = subprocess.run(["cc", "-o", program, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    output = subprocess.run([program], capture_output=True, check=True, text=True).stdout
    offsets: dict[str, list[int]] = {name: [] for _, name, *_ in present}
    for line in output.splitlines():
        name, offset = line.split()
        offsets[name].append(int(offset))
    return offsets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "name", "record", "renamed"), HEADERS, ids=[item[1] for item in HEADERS]
)
def test_record_offsets_match_the_systems_header(
    header: str,
    name: str,
    record: uapi.Record,
    renamed: dict[str, str] | None,
    request: pytest.FixtureRequest,
) -> None:
    if gap := _gap(header, name):
        pytest.skip(f"{gap}; the literal table covers it")

    offsets = request.getfixturevalue("offsets_in_c")

    assert offsets[name] == [record.offsets[field][0] for field in _members(record, renamed)]


class TestRecord:
    def test_pack_big_endian_puts_high_byte_first(self) -> None:
        record = uapi.DMA_MAP.reordered(">")

        packed = record.pack(argsz=32, flags=3, vaddr=0x7F00_0000_1000, iova=1 << 32, size=0x2000)

        assert packed.hex() == ("000000200000000300007f000000100000000001000000000000000000002000")

    def test_pack_little_endian_puts_low_byte_first(self) -> None:
        packed = uapi.DMA_UNMAP.reordered("<").pack(argsz=24, iova=0x1234)

        assert packed.hex() == "180000000000000034120000000000000000000000000000"

    def test_pack_native_order_equals_the_machines(self) -> None:
        native = uapi.DMA_UNMAP.pack(argsz=24, iova=0x1234)

        assert native == struct.pack("=IIQQ", 24, 0, 0x1234, 0)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_read_gives_back_what_was_packed(self, order: str) -> None:
        record = uapi_iommufd.MAP_FILE_ARG.reordered(order)
        values = {"size": 40, "flags": 7, "ioas_id": 1, "fd": -3}
        values |= {"start": 0, "length": 1 << 40, "iova": 1 << 63}

        assert record.read(record.pack(**values)) == values

    def test_pack_value_too_large_raises_request_error(self) -> None:
        with pytest.raises(RequestError, match="iova of vfio_iommu_type1_dma_map") as caught:
            uapi.DMA_MAP.pack(iova=1 << 64)

        assert caught.value.field == "iova"

    def test_pack_unknown_field_raises_request_error(self) -> None:
        with pytest.raises(RequestError, match="no field length"):
            uapi.DMA_MAP.pack(length=1)

    def test_read_short_buffer_raises_capability_error(self) -> None:
        with pytest.raises(CapabilityError, match="does not fit at byte 8"):
            uapi.DMA_MAP.read(bytes(32), 8)


class TestGrowByArgsz:
    def test_answer_that_fits_is_returned(self) -> None:
        asked = []

        uapi.grow_by_argsz(lambda buffer: asked.append(len(buffer)), uapi.TYPE1_INFO)

        assert asked == [24]

    def test_answer_that_grows_twice_is_asked_three_times(self) -> None:
        needs = iter([100, 140, 140])
        asked = []

        def call(buffer: bytearray) -> None:
            asked.append(len(buffer))
            struct.pack_into("=I", buffer, 0, next(needs))

        uapi.grow_by_argsz(call, uapi.TYPE1_INFO)

        assert asked == [24, 100, 140]

    def test_answer_that_grows_for_ever_raises(self) -> None:
        def call(buffer: bytearray) -> None:
            struct.pack_into("=I", buffer, 0, len(buffer) + 16)

        with pytest.raises(CapabilityError, match="grew 16 times"):
            uapi.grow_by_argsz(call, uapi.TYPE1_INFO)

    def test_answer_below_the_fixed_part_raises(self) -> None:
        def call(buffer: bytearray) -> None:
            struct.pack_into("=I", buffer, 0, 8)

        with pytest.raises(CapabilityError, match="8 bytes, fewer than"):
            uapi.grow_by_argsz(call, uapi.TYPE1_INFO)

    def test_buffer_begins_zeroed_so_old_kernels_give_no_chain(self) -> None:
        answer = uapi.grow_by_argsz(lambda buffer: None, uapi.TYPE1_INFO)

        assert uapi.TYPE1_INFO.read(answer)["cap_offset"] == 0
