# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of what the commands print: `python -m tools.schemas` writes the files anew.

Each file in `vmm_iova/report/schemas` is one versioned output. They are written down here once,
part by part, because outputs share parts. Every key is described, and there is none beside those.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "vmm_iova/report/schemas"
SNAPSHOT = ROOT / "vmm_iova/host/snapshot.schema.json"
Schema = dict[str, Any]

# -- the parts of the notation ---------------------------------------------------------------------


def text(about: str, *words: str) -> Schema:
    """A string; one of `words` where there are any."""
    return {"description": about, "type": "string", **({"enum": list(words)} if words else {})}


def hexa(about: str) -> Schema:
    return {"description": about, "type": "string", "pattern": "^0x[0-9a-f]{1,17}$"}


def number(about: str, least: int = 0) -> Schema:
    return {"description": about, "type": "integer", "minimum": least}


def flag(about: str) -> Schema:
    return {"description": about, "type": "boolean"}


def many(about: str, item: Schema) -> Schema:
    return {"description": about, "type": "array", "items": item}


def texts(about: str) -> Schema:
    return many(about, {"type": "string"})


def maybe(what: Schema) -> Schema:
    """The same, or null."""
    about = {"description": what["description"]} if "description" in what else {}
    inner = {key: value for key, value in what.items() if key != "description"}
    return {**about, "anyOf": [inner, {"type": "null"}]}


def record(
    about: str, keys: dict[str, Schema], optional: dict[str, Schema] | None = None
) -> Schema:
    """An object that has all of `keys`, perhaps some of `optional`, and nothing else."""
    return {
        "description": about,
        "type": "object",
        "properties": {**keys, **(optional or {})},
        "required": list(keys),
        "additionalProperties": False,
    }


def by(about: str, value: Schema, names: str = "") -> Schema:
    """An object whose keys are data: names of the host, page sizes."""
    limit = {"propertyNames": {"pattern": names}} if names else {}
    return {"description": about, "type": "object", "additionalProperties": value, **limit}


# -- parts that several have -----------------------------------------------------------------------

ENDS = {"start": hexa("first address"), "last": hexa("last address, included")}
HEX_KEY = "^0x[0-9a-f]+$"


def span(about: str, more: dict[str, Schema] | None = None) -> Schema:
    return record(about, {**ENDS, **(more or {})})


def said(certainty: str) -> dict[str, Schema]:
    return {
        "verdict": text("the answer in one sentence, with the numbers that matter"),
        "certainty": text(certainty),
        "action": texts("what to do, the best first"),
        "reason": texts("what the verdict rests on"),
        "source": texts("where that is written: file and line, or the kernel's source"),
    }


ANSWER = said("the verdict in one word, as the first line of the text has it, or how sure it is")
NOTES = texts("what else one should know")
UNASSIGNABLE = texts("groups that a current kernel does not hand out, each with the reason")
CAUSE = span(
    "a fact that forbids addresses",
    {
        "kind": text("what kind of fact it is"),
        "text": text("the fact in words, with its source"),
        "type": maybe(text("of a reserved region: the word of sysfs")),
        "group": maybe(text("of a reserved region: its IOMMU group")),
        "source": maybe(text("of a reserved region: file and line")),
    },
)
VERDICT = {
    **ENDS,
    "ok": flag("whether the range can be one mapping"),
    "kind": text("what is wrong with it, or `ok`"),
    "causes": many("what is in the way, ascending", CAUSE),
    "room": hexa("bytes that fit from its start on"),
    "limit": maybe(hexa("last usable address, where the range lies beyond it")),
    "bits_needed": number("address bits that the range needs"),
    "pieces": many("the parts of it that can be mapped", span("one part")),
    "next_fit": maybe(hexa("lowest address above at which all of it fits")),
    "warnings": texts("what may be mapped, but with care"),
    "fixes": texts("what would make it possible, each tried"),
}
WIDTH = {
    "what": text("which width it is, of which IOMMU"),
    "bits": number("address bits"),
    "source": text("where it is written"),
    "counts": flag("whether it limits the devices that were asked about"),
}
TABLES = record(
    "page tables of the IOMMU",
    {
        "leaves": by("entries by page size", number("how many"), HEX_KEY),
        "bytes": hexa("memory that the tables take"),
    },
)
COST = record(
    "what mapping takes",
    {
        "entries": number("map calls"),
        "entry_limit": number("most that the kernel takes (dma_entry_limit)"),
        "entry_limit_known": flag("whether the host states that limit; else it is the default"),
        "bars": record(
            "BARs that are mapped for peers, not locked",
            {
                "count": number("how many"),
                "required": number("how many of them peers must reach"),
                "size": hexa("bytes"),
            },
        ),
        "locked": hexa("bytes of memory that are locked"),
        "memlock": maybe(
            {"description": "RLIMIT_MEMLOCK that it needs", "type": ["string", "integer"]}
        ),
        "page_tables_best": {**TABLES, "description": "with the largest pages"},
        "page_tables_worst": {**TABLES, "description": "with base pages alone"},
        "page_sizes_known": flag("whether the page sizes of the IOMMU are known"),
        "fits": flag("whether the kernel takes that many map calls"),
        "containers": number("address spaces that are filled, each at this cost"),
        "chunk": maybe(hexa("bytes that the VMM maps with one call")),
        "entries_by_chunk": by("map calls, by the bytes of one call", number("how many"), HEX_KEY),
        "large_pages": many(
            "huge pages that back the RAM",
            record(
                "pages of one size",
                {"page_size": hexa("bytes of one"), "count": number("how many")},
            ),
        ),
        "slots": number("memory slots of KVM"),
        "slot_limit": maybe(number("most slots that the VMM has")),
        "settings": texts("what to set on the host"),
    },
)
ITEM = record(
    "one part of the layout",
    {
        "kind": text(
            "what it is",
            *("ram", "msi", "doorbell", "window", "device", "firmware", "reserved", "bar", "room"),
        ),
        "name": text("its name"),
        "size": hexa("bytes"),
        "gpa": maybe(span("guest addresses; null for what the guest does not see")),
        "iova": maybe(span("addresses as devices see it; null for what none reaches")),
        "start_cause": maybe(text("what put its start there; null: machine or size")),
        "last_cause": maybe(text("what put its last address there; null: machine or size")),
        "node": maybe(text("NUMA node of RAM")),
        "required": flag("of a BAR: peers must reach it"),
        "emulated": flag("of a BAR: the VMM answers for it, so that no device reaches it"),
    },
)
LAYOUT = {
    "rules": number("version of the rules that placed it"),
    "machine": text("machine model"),
    "host": text("name of the host"),
    "groups": texts("IOMMU groups that were judged"),
    "ram": hexa("bytes of RAM"),
    "on_hole": text("policy that was asked for", "auto", "refuse", "split", "move"),
    "policy": text("what was done"),
    "granule": hexa("smallest page of the IOMMU"),
    "address_bits": number("guest address bits that it needs"),
    "items": many("parts, ascending by guest address", ITEM),
    "guest_reserved": many(
        "what the guest must keep its hands off", span("one span", {"cause": text("why")})
    ),
    "evidence": texts("what states the aperture"),
    "unassignable": UNASSIGNABLE,
    "notes": NOTES,
    "nodes": many(
        "NUMA nodes; one without a name where there are none",
        record(
            "a node",
            {
                "name": maybe(text("its name")),
                "size": hexa("bytes of RAM"),
                "page_size": maybe(hexa("bytes of the pages that back it")),
            },
        ),
    ),
    "viommu": flag("whether the guest has an IOMMU of its own"),
    "devices": number("assigned devices"),
    "widths": many("address widths of the host", record("one width", WIDTH)),
    "kept": flag("whether a saved layout was kept whole"),
    "changes": texts("what is not as in the saved layout"),
    "vmm_reserved": many("addresses that the VMM keeps free by itself", span("one span")),
    "settings": texts("options of the VMM that make it so"),
    "reasons": texts("why the VMM or its firmware puts something where it is"),
    "otherwise": texts("what would be had with other options, each tried"),
}
TOLD = record(
    "what the guest must be told, in each form that it may read",
    {
        "e820": maybe(
            many(
                "the memory map of a PC",
                record(
                    "an entry",
                    {
                        "start": hexa("first address"),
                        "size": hexa("bytes"),
                        "type": number("1 usable, 2 reserved"),
                        "name": text("the type in a word"),
                    },
                ),
            )
        ),
        "device_tree": maybe(text("nodes of a device tree, as source")),
        "exclude": many("spans to keep free", span("one span", {"cause": text("why")})),
        "viommu": maybe(
            record(
                "limits that the guest's own IOMMU must announce",
                {
                    "address_bits": maybe(number("most address bits")),
                    "input_range": maybe(span("addresses that it may hand out")),
                    "page_sizes": maybe(hexa("page sizes: each set bit is one")),
                    "reserved": many("addresses that it must not hand out", span("one span")),
                },
            )
        ),
    },
)
START = record(
    "whether the guest starts, beside its addresses",
    {
        "verdict": text("what comes of all rows"),
        "rows": many(
            "what it depends on",
            record(
                "one matter",
                {
                    "what": text("what is looked at"),
                    "state": text("what was found", "ok", "not ok", "not known"),
                    "text": text("the same in a sentence"),
                    "do": texts("what to type"),
                    "fatal": flag("whether the guest does not start without it"),
                },
            ),
        ),
    },
)
MEMBERS = many(
    "devices of the groups that are given away",
    record(
        "a device",
        {
            "name": text("its address (BDF)"),
            "group": maybe(text("its IOMMU group")),
            "driver": maybe(text("driver that has it")),
            "holder": maybe(text("who keeps the group from being given away")),
            "asked": flag("whether -s named it"),
        },
    ),
)
VM = record(
    "the definition of the VM that was read (--vm)",
    {
        "kind": text("whose format it has"),
        "name": maybe(text("name of the VM")),
        "arch": maybe(text("architecture of the guest")),
        "devices": many(
            "devices that it assigns",
            record(
                "a device",
                {
                    "name": text("its address"),
                    "kind": text("how it is assigned"),
                    "managed": flag("whether the VMM's manager binds it to vfio-pci"),
                },
            ),
        ),
        "readings": texts("what it may mean, where it leaves that open"),
        "faults": texts("what its own program would refuse"),
        "unread": texts("what was not understood"),
        "change": text("what must differ, in the form of the definition; empty where nothing does"),
    },
)
DEVICE_COUNT = record(
    "devices of one class and driver",
    {
        "class": maybe(text("PCI class")),
        "driver": maybe(text("driver that has them")),
        "groups": number("IOMMU groups with such a device"),
        "assignable": number("groups that can be given to a guest"),
        "fits": number("groups with which the guest fits"),
        "hosts": number("hosts that have one"),
        "fit_hosts": number("hosts that have one with which the guest fits"),
        "names": texts("some of these hosts"),
        "blocked": maybe(texts("why one is not to be had: the host, and the reason")),
    },
)


def saved() -> Schema:
    return record(
        "a layout, as `plan -o FILE.json` saves it", {"schema": root("layout", 1), **LAYOUT}
    )


def root(name: str, version: int) -> Schema:
    return record(
        "name and version of this format",
        {
            "name": {"description": "which output it is", "const": f"vmm-iova-{name}"},
            "version": {"description": "counts what is taken away or changed", "const": version},
        },
    )


def document(
    name: str, version: int, about: str, keys: dict[str, Schema], optional: dict[str, Schema]
) -> Schema:
    """A whole output."""
    head = {"schema": root(name, version), "generator": text("name and version of the program")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vmm-iova-{name}, version {version}",
        **record(about, {**head, **keys}, optional),
    }


# -- the outputs -----------------------------------------------------------------------------------


def outputs() -> dict[str, Schema]:
    """Every schema, by the name of its output."""
    snapshot = {"$id": "snapshot.schema.json", **json.loads(SNAPSHOT.read_text("utf-8"))}
    snapshot["description"] = f"facts of the host. {snapshot['description']}"
    snapshot["required"] = [key for key in snapshot["required"] if key != "schema"]
    described: dict[str, tuple[int, str, dict[str, Schema], dict[str, Schema]]] = {
        "hosts": (1, "`show --list -J`", {"hosts": texts("names of bundled hosts")}, {}),
        "show": (2, "`show -J`", _show(snapshot), {}),
        "layout": (
            1,
            "`plan -J`, and `plan -o FILE.json`",
            {**ANSWER, **LAYOUT, "told": TOLD, "cost": COST, "members": MEMBERS},
            {
                "start": START,
                "vm": VM,
                "compared": many(
                    "with --compare: the cost of each policy and page size",
                    record(
                        "one of them",
                        {
                            "policy": text("policy"),
                            "align": text("page size"),
                            "cost": maybe(COST),
                        },
                    ),
                ),
            },
        ),
        "check": (
            2,
            "`check -J`",
            {
                "host": text("name of the host"),
                "unassignable": UNASSIGNABLE,
                "notes": NOTES,
                "verdicts": many(
                    "one for each range",
                    record(
                        "a range", {**ANSWER, **VERDICT, "name": maybe(text("of --maps: whose"))}
                    ),
                ),
            },
            {},
        ),
        "attach": (1, "`check --attach -J`", _attach(), {}),
        "explain": (2, "`explain -J`", _explain(), {}),
        "machines": (1, "`machines -J`", {"machines": many("machine models", _machine())}, {}),
        "fleet": (2, "`fleet -J`, and `fleet -o FILE.json`", _fleet(), {}),
        "diff": (
            2,
            "`diff -J`",
            {
                **ANSWER,
                "same": flag("whether nothing differs"),
                "guest": texts("what changes for a guest"),
                "difference": by(
                    "what differs, by its kind: facts, granule, limits, reserved regions ...",
                    record(
                        "of one kind",
                        {
                            "only_first": texts("what the first has alone"),
                            "only_second": texts("what the second has alone"),
                        },
                    ),
                ),
            },
            {},
        ),
        "capture": (
            1,
            "`capture -o FILE -J`: what was written, and what it is good for",
            ANSWER,
            {},
        ),
        "error": (1, "any command with -J that has no other answer", *_error()),
    }
    return {name: document(name, *entry) for name, entry in described.items()}


def _show(snapshot: Schema) -> dict[str, Schema]:
    edge = {"start_cause": text("why it starts there"), "last_cause": text("why it ends there")}
    usable = record(
        "what may be mapped; null where the facts do not settle it",
        {
            "host": text("name of the host"),
            "groups": texts("IOMMU groups that were judged"),
            "granule": hexa("smallest page of the IOMMU"),
            "granule_source": text("where that is written"),
            "ranges": many("usable ranges, ascending", span("one range", edge)),
            "evidence": many(
                "what states the aperture",
                record(
                    "one piece of evidence",
                    {"kind": text("how strong it is"), "text": text("the same in words")},
                ),
            ),
            "unassignable": UNASSIGNABLE,
            "widths": many(
                "address widths",
                record("one width", {**WIDTH, "limits": flag("whether it is the least")}),
            ),
            "relaxable": many(
                "usable with a warning",
                span("a direct-relaxable region", {"source": text("file and line")}),
            ),
            "notes": NOTES,
        },
    )
    return {
        **ANSWER,
        "host": snapshot,
        "features": by("what each IOMMU can do, by its name", texts("features")),
        "hardware": by("what iommufd says of the IOMMU, by device", texts("features")),
        "usable": maybe(usable),
        "why_not": maybe(text("why nothing can be said of what may be mapped")),
    }


def _attach() -> dict[str, Schema]:
    refusal = record(
        "one reason",
        {
            "errno": text("name of the errno"),
            "text": text("the reason in words"),
            "range": maybe(span("what it is about")),
        },
    )
    verdict = record(
        "what a kernel does on one way",
        {
            "via": text("the way", "type1", "iommufd"),
            "ok": flag("whether it attaches"),
            **ANSWER,
            "refusals": many("why it does not", refusal),
            "ranges": many("the kernel's list afterwards", span("one range")),
            "lost": many("what can no longer be mapped", span("one range")),
        },
    )
    return {
        "host": text("name of the host"),
        "attach": texts("devices that are attached"),
        "verdicts": many("one for each way", verdict),
    }


def _explain() -> dict[str, Schema]:
    cause = record(
        "one cause",
        {
            "cause": text("its name"),
            "certainty": text("how sure it is", "certain", "likely", "possible"),
            "text": text("the cause in words"),
            "since": text("since which kernel, where that is known"),
            "source": text("where it is written"),
        },
    )
    failure = {
        **said("how sure the verdict is"),
        "harmless": flag("whether the program goes on without"),
        "settled": flag("whether one cause is certain"),
        "settles": texts("what would settle it"),
        "op": text("what was called: map, unmap, attach ..."),
        "api": maybe(text("type1 or iommufd, where that is known")),
        "errno": maybe(text("name of the errno")),
        "iova": maybe(hexa("address")),
        "size": maybe(hexa("bytes")),
        "hva": maybe(hexa("address in the process")),
        "name": maybe(text("what it was for")),
        "program": maybe(text("whose line it is")),
        "part": maybe(text("which part of the guest is at that address")),
        "device": maybe(text("device (BDF)")),
        "line": maybe(number("line of the paste")),
        "host": maybe(text("name of the host it was judged with")),
        "meaning": text("what the errno says of this call"),
        "causes": many("in the kernel's order", cause),
        "range": maybe(record("the range, judged on the host", VERDICT)),
        "notes": NOTES,
    }
    return {
        "settled": flag("whether every failure has a certain cause"),
        "notes": NOTES,
        "failures": many("failures, as they come", record("one failure", failure)),
    }


def _machine() -> Schema:
    ram = {
        "name": text("its name"),
        "whole_below": maybe(hexa("RAM up to so much is here whole")),
        "required": hexa("bytes at its start that must be RAM"),
        "move_to": maybe(hexa("where the VMM moves it by itself")),
        "movable": flag("whether it may be moved"),
    }
    window = {
        "size": maybe(hexa("bytes; null: what is left")),
        "align": hexa("alignment of its start"),
        "floor": hexa("lowest start"),
        "start": maybe(hexa("fixed start")),
        "share": maybe(
            {"description": "share of the address space", "type": ["number", "integer"]}
        ),
        "downward": flag("whether it ends at the top of the address space"),
    }
    return record(
        "a machine model",
        {
            "name": text("its name"),
            "title": text("the same for people"),
            "arch": text("architecture"),
            "aliases": texts("other names"),
            "source": text("where the memory map is written"),
            "identity": flag("whether devices see guest addresses"),
            "phys_bits": maybe(number("guest address bits, where the machine states them")),
            "ram_max": maybe(hexa("most RAM")),
            "gap32": maybe(span("where 32-bit BARs go")),
            "ram": many("windows of RAM, in the order in which they fill", span("a window", ram)),
            "fixed": many(
                "what is at a fixed place",
                span("one thing", {"name": text("its name"), "kind": text("what it is")}),
            ),
            "ram_reserved": many(
                "RAM that the guest does not get", span("one span", {"name": text("its name")})
            ),
            "pci64": maybe(record("the 64-bit PCI window", window)),
        },
    )


def _fleet() -> dict[str, Schema]:
    counts = by("hosts by what came out", number("how many"))
    problem = record(
        "one host",
        {
            "name": text("its name"),
            "text": text("what is wrong"),
            "fixes": texts("what would help"),
        },
    )
    group = record(
        "hosts that share a layout",
        {
            "layout": saved(),
            "digest": text("of the layout"),
            "machine": text("machine model"),
            "hosts": number("how many hosts"),
            "names": texts("some of them"),
            "classes": texts("kinds of hosts in it, by digest"),
        },
    )
    blocker = record(
        "hosts that stand in the way of one layout for all",
        {
            "why": text("one clause"),
            "hosts": number("how many hosts"),
            "names": texts("some of them"),
            "status": text("what came out for them"),
            "fixes": texts("what would help"),
        },
    )
    kind = record(
        "hosts that allow the same",
        {
            "digest": text("of what they allow"),
            "hosts": number("how many hosts"),
            "names": texts("some of them"),
            "machine": maybe(text("machine model")),
            "granule": hexa("smallest page of the IOMMU"),
            "cpu_bits": maybe(number("physical address bits of the CPU")),
            "ranges": many("usable ranges", span("one range")),
            "layout": maybe(text("digest of the layout that they have")),
            "refusal": maybe(text("why they cannot have the guest")),
            "fixes": texts("what would help"),
        },
    )
    machine = record(
        "one machine",
        {
            "name": text("machine model"),
            "counts": counts,
            "layout": maybe({**saved(), "description": "one layout for all of these hosts"}),
        },
    )
    return {
        **ANSWER,
        "hosts": number("hosts that were read"),
        "counts": counts,
        "answer": text("the answer in one sentence"),
        "complete": flag("whether all kinds of hosts were kept; else groups are of a sample"),
        "layout": maybe({**saved(), "description": "one layout for every host that has one"}),
        "machines": many("an answer for each machine model", machine),
        "groups": many("layouts, the one with most hosts first", group),
        "blockers": many("who stands in the way", blocker),
        "problems": by("hosts without an answer, by what came out", many("some of them", problem)),
        "devices": many("devices of the fleet", DEVICE_COUNT),
        "classes": many("kinds of hosts", kind),
        "truncated": flag("whether there were more kinds than are kept"),
    }


def _error() -> tuple[dict[str, Schema], dict[str, Schema]]:
    reason = record(
        "one thing that does not fit",
        {
            "item": text("what it is"),
            "range": span("where it would be"),
            "cause": text("what is in the way"),
            "fits": hexa("bytes that fit there"),
        },
    )
    keys = {
        "exit_status": number("exit status of the command"),
        "error": text("name of the exception"),
        "message": text("what is wrong, in one sentence"),
        "detail": maybe(text("more of it")),
        "hint": maybe(text("the next step")),
    }
    answer = said("REFUSED or UNKNOWN, in lower case")
    more = {
        "fixes": texts("of a plan: what would make it fit, each tried"),
        "reasons": many("of a plan: what does not fit", reason),
        "vm": {**VM, "description": "of `plan --vm`: the definition, and the change that fits"},
    }
    return keys, {**answer, **more}


# -- files and the page ----------------------------------------------------------------------------


def files() -> dict[str, str]:
    """Every file, by name."""
    return {
        f"{name}.schema.json": json.dumps(schema, indent=1) + "\n"
        for name, schema in outputs().items()
    }


def page() -> str:
    """The reference of every key."""
    lines = [
        "<!-- written by `make docs` -->\n",
        "# JSON\n",
        "Every document names its `schema`. The schemas (JSON Schema 2020-12) are in the package, "
        "`vmm_iova/report/schemas/NAME.schema.json`; the one of a snapshot is "
        "`vmm_iova/host/snapshot.schema.json`. Addresses and sizes are hex strings. Within a "
        "version keys are only added.\n",
    ]
    for name, schema in outputs().items():
        lines += [
            f"## vmm-iova-{name}\n",
            f"{schema['description']}.\n",
            "| key | | |",
            "|---|---|---|",
        ]
        lines += [f"| `{key}` | {kind} | {about} |" for key, kind, about in keys_of(schema)]
        lines.append("")
    snapshot = json.loads(SNAPSHOT.read_text("utf-8"))
    lines += ["## vmm-iova-host-snapshot\n", f"{snapshot['description']}\n", "```json"]
    lines += [json.dumps(snapshot, indent=1), "```\n"]
    return "\n".join(lines)


def keys_of(schema: Schema, path: str = "") -> list[tuple[str, str, str]]:
    """Every key of a schema: its path, its type, what it is."""
    if "anyOf" in schema:
        return keys_of(schema["anyOf"][0], path)
    if "$id" in schema:  # the snapshot has a section of its own
        return []
    found = []
    if isinstance(schema.get("items"), dict):
        found += keys_of(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        found += keys_of(schema["additionalProperties"], f"{path}.*")
    for key, value in schema.get("properties", {}).items():
        where = f"{path}.{key}".lstrip(".")
        found.append((where, _kind(value), value["description"].replace("|", "\\|")))
        found += keys_of(value, where)
    return found


def _kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return f"{_kind(schema['anyOf'][0])} or null"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("pattern"):
        return "hex string"
    if isinstance(schema.get("type"), list):
        return " or ".join(schema["type"])
    words = ", ".join(f"`{word}`" for word in schema.get("enum", ()))
    return words or str(schema.get("type", "object"))


def main() -> int:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
