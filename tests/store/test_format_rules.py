"""docs/format.md, rule by rule: one malformed store or more for each, refused with file, rule and place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from coterie.errors import ChecksumError, StoreFormatError
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import AllocationFacts, CalibrationFacts, RecordErrors, Store, verify_store
from coterie.store.manifest_json import manifest_bytes, seal_manifest

from .tiny import write_store

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
EXPERTS = "experts/talker/mlp-layer-000.safetensors"
THINKER = "experts/thinker/mlp-layer-000.safetensors"
SHARD = "dense-00001-of-00002.safetensors"
INDEX = "dense.safetensors.index.json"

Json = dict[str, Any]
REMOVED = object()


def at(*path: str | int, value: Any) -> Callable[[Json], None]:
    """A change that sets (or removes) one value of the manifest."""

    def change(manifest: Json) -> None:
        node: Any = manifest
        for key in path[:-1]:
            node = node[key]
        if value is REMOVED:
            del node[path[-1]]
        else:
            node[path[-1]] = value(node[path[-1]]) if callable(value) else value

    return change


def record(name: str, value: Any, number: int = 0) -> Callable[[Json], None]:
    return at("banks", 0, "segments", 0, "experts", number, name, value=value)


def swap_records(manifest: Json) -> None:
    experts = manifest["banks"][0]["segments"][0]["experts"]
    experts[0]["id"], experts[1]["id"] = experts[1]["id"], experts[0]["id"]


def same_expert_in_two_segments(manifest: Json) -> None:
    segments = manifest["banks"][0]["segments"]
    segments.append({**segments[0], "file": "experts/talker/mlp-layer-000.1.safetensors"})


def empty_segment(manifest: Json) -> None:
    file = "experts/talker/mlp-layer-000.1.safetensors"
    manifest["banks"][0]["segments"].append({"file": file, "bytes": 4096, "experts": []})


def overlapping_fields(manifest: Json) -> None:
    manifest["layouts"]["int4"]["fields"][1]["offset"] = 64


def codes(number: int = 0, **facts: Any) -> Callable[[Json], None]:
    """Changes the field with the codes of the layout int4, or with 1 that with their scales."""

    def change(manifest: Json) -> None:
        manifest["layouts"]["int4"]["fields"][number].update(facts)

    return change


def many(count: int, item: Any) -> Callable[[Any], Any]:
    return lambda _: [item] * count


def in_parts(schemes: Any, *, version: int = 2, **other: Any) -> Callable[[Json], None]:
    """Gives linear layers outside experts schemes by part."""

    def change(manifest: Json) -> None:
        manifest["version"] = version
        manifest["dense"].update(schemes=schemes, **other)

    return change


ERRORS: dict[str, Any] = {"output": 1, "nearest": 2, "weights": {"down": 3}}


def calibrated(
    *,
    version: int = 4,
    fingerprint: str = "0" * 64,
    tokens: Any = None,
    errors: Any = None,
    sequences: Sequence[str] = (),
) -> Callable[[Json], None]:
    """Gives an expert errors, and the manifest what its codes were chosen by."""

    def change(manifest: Json) -> None:
        manifest["version"] = version
        manifest["calibration"] = {
            "fingerprint": fingerprint,
            "tokens": {"code": 1} if tokens is None else tokens,
            "sequences": list(sequences),
        }
        manifest["banks"][0]["segments"][0]["experts"][2]["errors"] = ERRORS if errors is None else errors

    return change


ALLOCATION = {
    "criterion": "energy",
    "bits": 3500,
    "domains": ["code", "german"],
    "tokens_of": {"thinker": ["text of code", "text of german"]},
    "profile": "0" * 32,
    "left_out": 2,
}


def allocated(*, version: int = 4, **changed: Any) -> Callable[[Json], None]:
    """Says in the manifest what bits were allocated by."""

    def change(manifest: Json) -> None:
        manifest["version"] = version
        manifest["allocation"] = {**ALLOCATION, **changed}

    return change


SMALL = "gate_up|down/small"
FIELD = ("layouts", SMALL, "fields", 0)

# (rule, place, change): the manifest is sealed again after the change.
MANIFEST_CASES: list[tuple[str, str, Callable[[Json], None]]] = [
    ("R3", "the top level", at("extra", value=1)),
    ("R3", "the top level", at("ignored", value=REMOVED)),
    ("R3", "model", at("model", "class", value=REMOVED)),
    ("R3", "banks[0].segments[0].experts[0]", record("packed", 1)),
    ("R3", "layouts.int4", at("layouts", "int4", "comment", value="x")),
    ("R3", "dense", at("dense", value=[])),
    ("R4", "banks", at("banks", value={})),
    ("R4", "banks[0].layer", at("banks", 0, "layer", value="0")),
    ("R4", "banks[0].sources[0]", at("banks", 0, "sources", 0, value="a\nb")),
    ("R4", "banks[0].sources[0]", at("banks", 0, "sources", 0, value="x" * 4097)),
    ("R4", "layouts", at("layouts", value=lambda layouts: layouts | {str(i): layouts["int4"] for i in range(4096)})),
    ("R4", "layouts.int4.fields", at("layouts", "int4", "fields", value=many(65, {}))),
    ("R4", "layouts.int4.fields[0].shape", at("layouts", "int4", "fields", 0, "shape", value=many(9, 1))),
    ("R4", "banks[0].weightless", at("banks", 0, "weightless", value=many(7, 1))),
    ("R5", "the top level", at("format", value="safetensors")),
    ("R5", "the top level", at("version", value=REMOVED)),
    ("R5", "version", at("version", value=0)),
    ("R5", "version", at("version", value=6)),
    ("R4", "version", at("version", value=True)),
    ("R6", "model.identity", at("model", "identity", value="ABCDEF0123456789")),
    ("R6", "source.integrity", at("source", "integrity", value="abc")),
    ("R6", "model.component", at("model", "component", value="../thinker")),
    ("R4", "model.class", at("model", "class", value="")),
    ("R4", "source.revision", at("source", "revision", value=7)),
    ("R7", "layouts", at("layouts", value=lambda layouts: layouts | {"unused": layouts["int4"]})),
    ("R4", "layouts.", at("layouts", value=lambda layouts: layouts | {"": layouts["int4"]})),
    ("R8", "layouts.int4.fields", at("layouts", "int4", "fields", value=[])),
    ("R8", f"layouts.{SMALL}.fields[0].dtype", at(*FIELD, "dtype", value="F4")),
    ("R8", f"layouts.{SMALL}.fields[0].shape[0]", at(*FIELD, "shape", value=[0, 5])),
    ("R8", f"layouts.{SMALL}.fields[0].shape", at(*FIELD, "shape", value=[2**40, 2**40])),
    ("R8", f"layouts.{SMALL}.fields[0].offset", at(*FIELD, "offset", value=8)),
    ("R8", f"layouts.{SMALL}.fields[1]", at("layouts", SMALL, "fields", 1, "name", value="gate_up_proj")),
    ("R8", "layouts.int4.fields[1]", overlapping_fields),
    ("R9", "layouts.int4.bytes", at("layouts", "int4", "bytes", value=8192)),
    ("R9", "layouts.int4.bytes", at("layouts", "int4", "bytes", value=2**50)),
    ("R10", "banks[2]", at("banks", value=lambda banks: [banks[0], banks[2], banks[1]])),
    ("R10", "banks[1]", at("banks", value=lambda banks: [banks[0], banks[0]])),
    ("R10", "banks[0].component", at("banks", 0, "component", value="..")),
    ("R10", "banks[0].bank", at("banks", 0, "bank", value="a/b")),
    ("R10", "banks[0].layer", at("banks", 0, "layer", value=100_000)),
    ("R10", "banks[0].layer", at("banks", 0, "layer", value=-1)),
    ("R11", "banks[0].num_experts", at("banks", 0, "num_experts", value=0)),
    ("R11", "banks[0].num_experts", at("banks", 0, "num_experts", value=65_537)),
    ("R11", "banks[0].top_k", at("banks", 0, "top_k", value=7)),
    ("R12", "banks[0].weightless[1]", at("banks", 0, "weightless", value=[5, 5])),
    ("R12", "banks[0].weightless[0]", at("banks", 0, "weightless", value=[6])),
    ("R13", "banks[0].segments[0].file", at("banks", 0, "segments", 0, "file", value="/etc/passwd")),
    ("R13", "banks[0].segments[0].file", at("banks", 0, "segments", 0, "file", value=f"../{EXPERTS}")),
    ("R13", "banks[0].segments[0].file", at("banks", 0, "segments", 0, "file", value=THINKER)),
    ("R14", "banks[0].segments[0].experts[1].id", swap_records),
    ("R14", "banks[0].segments[0].experts[4].id", record("id", 6, 4)),
    ("R14", "banks[0].segments[0].experts[0]", at("banks", 0, "weightless", value=[0])),
    ("R14", "banks[0].segments[1].experts[0]", same_expert_in_two_segments),
    ("R14", "banks[0].segments[1].experts", empty_segment),
    ("R15", "banks[0].segments[0].experts[0].layout", record("layout", "absent")),
    ("R15", "banks[0].segments[0].experts[0].bytes", record("bytes", 8192)),
    ("R15", "banks[0].segments[0].experts[0].scheme", record("scheme", "Native")),
    ("R15", "banks[0].segments[0].experts[0].scheme", record("scheme", "int4+")),
    ("R31", "banks[0].segments[0].experts[0].layout", record("scheme", "int3+int4")),
    ("R15", "banks[0].segments[0].experts[0].xxh3", record("xxh3", "0" * 31)),
    ("R31", "banks[0].segments[0].experts[0].layout", record("scheme", "int4")),
    ("R31", "banks[0].segments[0].experts[0].layout", record("scheme", "int8")),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(name="gate_up_proj_int8")),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(dtype="I8")),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(shape=[24, 16])),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(shape=[12, 80])),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(1, name="other")),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(1, dtype="F16")),
    ("R31", "banks[0].segments[0].experts[2].layout", codes(1, shape=[2, 24, 2])),
    ("R16", "banks[0].segments[0].experts[0].offset", record("offset", 0)),
    ("R16", "banks[0].segments[0].experts[0].offset", record("offset", 4097)),
    ("R16", "banks[0].segments[0].experts[1]", record("offset", 4096, 1)),
    ("R16", "banks[0].segments[0].experts[1]", record("offset", 12288, 1)),
    ("R16", "banks[0].segments[0].bytes", at("banks", 0, "segments", 0, "bytes", value=24577)),
    ("R17", "dense.shards", at("dense", value={"shards": [], "index": None})),
    ("R17", "dense.shards[0]", at("dense", "shards", 0, "file", value="model.safetensors")),
    ("R17", "dense.index", at("dense", "index", value=None)),
    ("R17", "dense.index", at("dense", "index", "file", value="model.safetensors.index.json")),
    ("R32", "dense.scheme", at("dense", "scheme", value="native")),
    ("R32", "dense.scheme", at("dense", "scheme", value="int7")),
    ("R32", "dense.scheme", at("dense", "scheme", value="INT4")),
    ("R3", "dense", in_parts({"attention": "int8", "head": "native"}, version=1)),
    ("R3", "dense", at("version", value=2)),
    ("R3", "dense", in_parts({"attention": "int8", "head": "native"}, scheme="int8")),
    ("R4", "dense.schemes", in_parts(["int8"])),
    ("R4", "dense.schemes", in_parts({f"part{number}": "int8" for number in range(100)})),
    ("R33", "dense.schemes.heads", in_parts({"attention": "int8", "heads": "native"})),
    ("R33", "dense.schemes.vocoder", in_parts({"attention": "int8", "vocoder": "native"})),
    ("R33", "dense.schemes.head", in_parts({"attention": "int8", "head": "int7"})),
    ("R33", "dense.schemes", in_parts({})),
    ("R36", "version", at("version", value=4)),
    ("R3", "the top level", allocated(version=3)),
    ("R3", "allocation", allocated(extra=1)),
    ("R36", "allocation.criterion", allocated(criterion="magic")),
    ("R36", "allocation.bits", allocated(bits=0)),
    ("R36", "allocation.bits", allocated(bits=64_001)),
    ("R36", "allocation.domains", allocated(domains=["german", "code"])),
    ("R36", "allocation.domains", allocated(domains=["code", "code"])),
    ("R36", "allocation.domains", allocated(domains=[])),
    ("R36", "allocation.domains", allocated(criterion="reap")),
    ("R4", "allocation.domains", allocated(domains=[f"{number:04d}" for number in range(1025)])),
    ("R36", "allocation.tokens_of.thinker", allocated(tokens_of={"thinker": []})),
    ("R36", "allocation.tokens_of.Thinker", allocated(tokens_of={"Thinker": ["text"]})),
    ("R36", "allocation.profile", allocated(profile="x")),
    ("R36", "allocation.left_out", allocated(criterion="reap", domains=[])),
    ("R3", "the top level", calibrated(version=1)),
    ("R35", "calibration.fingerprint", calibrated(fingerprint="x")),
    ("R35", "calibration.tokens.code", calibrated(tokens={"code": 0})),
    ("R4", "calibration.tokens", calibrated(tokens={str(number): 1 for number in range(1025)})),
    (
        "R35",
        "banks[0].segments[0].experts[2].errors.output",
        calibrated(errors={"output": 3, "nearest": 2, "weights": {"down": 1}}),
    ),
    ("R35", "banks[0].segments[0].experts[2].errors.nearest", calibrated(errors={**ERRORS, "nearest": 10**15 + 1})),
    ("R35", "banks[0].segments[0].experts[2].errors.weights", calibrated(errors={**ERRORS, "weights": {}})),
    (
        "R35",
        "banks[0].segments[0].experts[2].errors.weights.down",
        calibrated(errors={**ERRORS, "weights": {"down": -1}}),
    ),
    ("R35", "calibration.sequences[0]", calibrated(sequences=["x" * 16])),
    ("R35", "calibration.sequences[1]", calibrated(sequences=["0" * 16, "0" * 16])),
    ("R3", "banks[0].segments[0].experts[2].errors", calibrated(errors={"output": 1})),
    ("R35", "banks", record("errors", ERRORS, 2)),
    ("R35", "banks[0].segments[0].experts[0].errors", record("errors", ERRORS)),
    ("R34", "version", at("version", value=3)),
    ("R34", "version", at("dense", "scheme", value="int3")),
    ("R34", "version", in_parts({"attention": "int8", "head": "int2"})),
    ("R34", "version", in_parts({"attention": "int8", "head": "native"}, version=3)),
    ("R37", "version", at("version", value=5)),
    ("R37", "version", at("dense", "scheme", value="int4-g128")),
    ("R37", "version", in_parts({"attention": "int8", "head": "int8-g32"}, version=3)),
    ("R37", "version", in_parts({"attention": "int3", "head": "native"}, version=5)),
    ("R33", "dense.schemes.head", in_parts({"attention": "int8", "head": "int4-g64"}, version=5)),
    ("R31", "banks[0].segments[0].experts[2].layout", record("scheme", "int4-g128", 2)),
    ("R3", "dense", in_parts({"attention": "int3", "head": "native"}, version=3, scheme="int8")),
    ("R33", "dense.schemes", in_parts({"attention": "int8", "head": "int8", "predictor": "native"})),
    ("R18", "files[1]", at("files", value=lambda files: [files[1], files[0]])),
    ("R18", "files[1]", at("files", value=lambda files: [files[0], files[0]])),
    ("R18", "files[0]", at("files", 0, "file", value="/config.json")),
    ("R18", "files[0]", at("files", 0, "file", value="../config.json")),
    ("R18", "files[0]", at("files", 0, "file", value="a/../config.json")),
    ("R18", "files[0]", at("files", 0, "file", value="a\\config.json")),
    ("R18", "files[0]", at("files", 0, "file", value=".hidden")),
    ("R18", "files[0]", at("files", 0, "file", value="experts/config.json")),
    ("R18", "files[0]", at("files", 0, "file", value="Coterie.json")),
    ("R18", "files[0]", at("files", 0, "file", value="a.safetensors")),
    ("R18", "files[0]", at("files", 0, "file", value="modeling.py")),
    ("R18", "files[0]", at("files", 0, "file", value="model.BIN")),
    ("R18", "files[1]", at("files", value=lambda files: [{**files[0], "file": "Config.json"}, files[0]])),
    ("R19", "ignored[1]", at("ignored", value=["b", "a"])),
    ("R19", "ignored[1]", at("ignored", value=["a", "a"])),
]

# (rule, place, bytes → bytes): the manifest's text itself.
TEXT_CASES: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("R1", "the file itself", lambda data: data + b" " * (64 * 2**20)),
    ("R2", "the top level", lambda data: b""),
    ("R2", "the top level", lambda data: data[:-3]),
    ("R2", "the top level", lambda data: b"\xef\xbb\xbf" + data),
    ("R2", "the top level", lambda data: data.replace(b"org", b"o\xffg")),
    ("R2", "the top level", lambda data: data + b"{}"),
    ("R2", "the top level", lambda data: data.replace(b'"version":1', b'"version":1,"version":1')),
    ("R2", "the top level", lambda data: data.replace(b'"version":1', b'"version":1.0')),
    ("R2", "the top level", lambda data: data.replace(b'"version":1', b'"version":NaN')),
    ("R2", "the top level", lambda data: data.replace(b'"version":1', b'"version":' + b"1" * 10_000)),
    ("R2", "the top level", lambda data: data.replace(b'"version":1', b'"version":' + b"[" * 100_000)),
    ("R4", "the top level", lambda data: b"[]"),
    ("R4", "the top level", lambda data: data.replace(b"org/tiny", b"\\ud800")),
    ("R30", "checksum", lambda data: data.replace(b"org/tiny", b"org/tinz")),
    ("R30", "checksum", lambda data: data.replace(b'"num_experts":6', b'"num_experts":7')),
]


def rewrite_header(path: Path, change: Callable[[Json], None], *, pad: int = 4096, keep: bool = True) -> None:
    """Changes the header of a tensor file; its size stays the same, as R20 would notice another."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    change(header)
    text = json.dumps(header).encode().ljust(start - 8 if keep else pad - 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


def patch(path: Path, offset: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)


def header(file: str, change: Callable[[Json], None]) -> Callable[[Path], None]:
    return lambda root: rewrite_header(root / file, change)


def bytes_at(file: str, offset: int, new: bytes) -> Callable[[Path], None]:
    return lambda root: patch(root / file, offset, new)


def shift_data(root: Path) -> None:
    """A header one byte shorter and data one byte longer: the same size, but data off the page."""
    path = root / EXPERTS
    data = path.read_bytes()
    path.write_bytes((4087).to_bytes(8, "little") + data[8:4095] + data[4096:] + b"\0")


def nonzero_padding(root: Path) -> None:
    """Padding that is not zero, with the checksum of exactly these bytes."""
    path = root / EXPERTS
    patch(path, 8191, b"\1")
    checksum = xxhash.xxh3_128_hexdigest(path.read_bytes()[4096:8192])
    edit_manifest(root, record("xxh3", checksum))


def replaced_whole_file(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Other content for a dense file, with size and checksum put right in the manifest."""

    def apply(root: Path) -> None:
        data = change((root / file).read_bytes())
        (root / file).write_bytes(data)

        def update(manifest: Json) -> None:
            facts = manifest["dense"]["index"] if file == INDEX else manifest["dense"]["shards"][0]
            facts.update(bytes=len(data), xxh3=xxhash.xxh3_128_hexdigest(data))

        edit_manifest(root, update)

    return apply


def edited_header(change: Callable[[Json], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        start = 8 + int.from_bytes(data[:8], "little")
        value = json.loads(data[8:start])
        change(value)
        return data[:8] + json.dumps(value).encode().ljust(start - 8) + data[start:]

    return apply


def link(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).rename(root.parent / "moved")
        (root / name).symlink_to(root.parent / "moved")

    return apply


def rename_tensor(value: Json) -> None:
    value["norm_weight"] = value.pop("norm.weight")


def tensor_in_both(value: Json) -> None:
    value["mask"] = value.pop("norm.weight")


def in_int4(change: Callable[[Json], None]) -> Callable[[Path], None]:
    """Another header of the first dense shard, in a store that says that its linear layers are in int4."""

    def apply(root: Path) -> None:
        replaced_whole_file(SHARD, edited_header(change))(root)
        edit_manifest(root, at("dense", "scheme", value="int4"))

    return apply


def in_both(change: Callable[[Json], None]) -> Callable[[Path], None]:
    """The same in a store that says that some are in int4 and some in int8."""

    def apply(root: Path) -> None:
        replaced_whole_file(SHARD, edited_header(change))(root)
        edit_manifest(root, in_parts({"attention": "int4", "head": "int8"}))

    return apply


def twice_stored(value: Json) -> None:
    """Codes and scales of one weight in two schemes."""
    begin, end = value.pop("embed.weight")["data_offsets"]
    for name, dtype, shape, nbytes in (
        ("q_int4", "U8", [32, 32], 1024),
        ("q_int4_scales", "BF16", [32, 1, 2], 128),
        ("q_int8", "I8", [32, 64], 2048),
        ("q_int8_scales", "BF16", [32, 1], 64),
        ("other", "U8", [end - begin - 3264], end - begin - 3264),
    ):
        value[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + nbytes]}
        begin += nbytes


def renamed(**names: str) -> Callable[[Json], None]:
    def change(value: Json) -> None:
        for new, old in names.items():
            value[new] = value.pop(old)

    return change


def split_embedding(value: Json) -> None:
    """Codes and scales that fit, and the weight itself beside them."""
    begin, end = value.pop("embed.weight")["data_offsets"]
    for name, dtype, shape, nbytes in (
        ("q_int4", "U8", [32, 32], 1024),
        ("q_int4_scales", "BF16", [32, 1, 2], 128),
        ("q", "U8", [end - begin - 1152], end - begin - 1152),
    ):
        value[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + nbytes]}
        begin += nbytes


# (rule, kind, file, place, change)
FILE_CASES: list[tuple[str, str, str, str, Callable[[Path], None]]] = [
    ("R1", "malformed", "coterie.json", "the file itself", link("coterie.json")),
    ("R20", "missing", EXPERTS, "the file itself", lambda root: (root / EXPERTS).unlink()),
    ("R20", "missing", SHARD, "the file itself", lambda root: (root / SHARD).unlink()),
    ("R20", "malformed", EXPERTS, "the file itself", lambda root: os.truncate(root / EXPERTS, 24575)),
    ("R20", "malformed", "config.json", "the file itself", lambda root: os.truncate(root / "config.json", 99)),
    ("R20", "malformed", EXPERTS, "the file itself", link(EXPERTS)),
    ("R20", "malformed", EXPERTS, "the file itself", link("experts")),
    ("R21", "malformed", EXPERTS, "byte 0", bytes_at(EXPERTS, 0, (2**63).to_bytes(8, "little"))),
    ("R21", "malformed", EXPERTS, "byte 0", bytes_at(EXPERTS, 0, (24569).to_bytes(8, "little"))),
    ("R21", "malformed", EXPERTS, "byte 0", bytes_at(EXPERTS, 0, (1).to_bytes(8, "little"))),
    ("R21", "malformed", EXPERTS, "byte 8", bytes_at(EXPERTS, 8, b" ")),
    ("R21", "malformed", EXPERTS, "header", bytes_at(EXPERTS, 9, b"'")),
    ("R21", "malformed", EXPERTS, "header", bytes_at(EXPERTS, 4095, b"}")),
    ("R22", "malformed", EXPERTS, "byte 0", shift_data),
    ("R23", "malformed", EXPERTS, "header.00000.dtype", header(EXPERTS, at("00000", "dtype", value="Q8"))),
    ("R23", "malformed", EXPERTS, "header.00000.data_offsets", header(EXPERTS, at("00000", "shape", value=[4095]))),
    ("R23", "malformed", EXPERTS, "header.00000", header(EXPERTS, at("00000", "data_offsets", value=[0]))),
    (
        "R23",
        "malformed",
        EXPERTS,
        "header.00000.data_offsets",
        header(EXPERTS, at("00000", value={"dtype": "U8", "shape": [2**30] * 60, "data_offsets": [0, 4096]})),
    ),
    (
        "R23",
        "malformed",
        EXPERTS,
        "header.00001.data_offsets",
        header(EXPERTS, at("00001", value={"dtype": "U8", "shape": [4097], "data_offsets": [4095, 8192]})),
    ),
    ("R23", "malformed", EXPERTS, "header.00002.data_offsets", header(EXPERTS, at("00001", value=REMOVED))),
    ("R23", "malformed", EXPERTS, "end of file", header(EXPERTS, at("00004", value=REMOVED))),
    ("R24", "malformed", EXPERTS, "header", header(EXPERTS, at("__metadata__", value={"a": "b"}))),
    ("R24", "malformed", EXPERTS, "header", header(EXPERTS, at("00000", "dtype", value="I8"))),
    ("R24", "malformed", EXPERTS, "header", header(EXPERTS, at("00000", "shape", value=[64, 64]))),
    (
        "R24",
        "malformed",
        EXPERTS,
        "header",
        header(EXPERTS, lambda value: value.update({"00005": value.pop("00004")})),
    ),
    (
        "R25",
        "malformed",
        SHARD,
        "header.__metadata__",
        replaced_whole_file(SHARD, edited_header(at("__metadata__", value={"format": "tf"}))),
    ),
    ("R25", "malformed", INDEX, "weight_map.norm.weight", replaced_whole_file(SHARD, edited_header(rename_tensor))),
    (
        "R25",
        "malformed",
        "dense-00002-of-00002.safetensors",
        "header.mask",
        replaced_whole_file(SHARD, edited_header(tensor_in_both)),
    ),
    ("R25", "malformed", INDEX, "the top level", replaced_whole_file(INDEX, lambda data: data[:-4])),
    (
        "R25",
        "malformed",
        INDEX,
        "weight_map.mask",
        replaced_whole_file(INDEX, lambda data: data.replace(b'"mask":"dense-00002', b'"mask":"dense-00001')),
    ),
    ("R26", "malformed", EXPERTS, "expert 00000, byte 4095 of the record", nonzero_padding),
    ("R27", "corrupt", EXPERTS, "expert 00001, offset 8192", bytes_at(EXPERTS, 8193, b"\0\0\0")),
    ("R28", "corrupt", SHARD, "the file itself", bytes_at(SHARD, 5000, b"\0\0\0")),
    ("R28", "corrupt", "config.json", "the file itself", bytes_at("config.json", 2, b"M")),
    ("R28", "corrupt", INDEX, "the file itself", bytes_at(INDEX, 2, b"M")),
    ("R32", "malformed", SHARD, "header.q_int4", in_int4(renamed(q_int4="embed.weight"))),
    ("R32", "malformed", SHARD, "header.q_int4_scales", in_int4(renamed(q_int4_scales="embed.weight"))),
    ("R32", "malformed", SHARD, "header.q_int4", in_int4(renamed(q_int4="embed.weight", q_int4_scales="norm.weight"))),
    ("R32", "malformed", SHARD, "header.q_int4", in_int4(split_embedding)),
    ("R32", "malformed", SHARD, "header.q_int4", in_both(renamed(q_int4="embed.weight"))),
    ("R32", "malformed", SHARD, "header.q_int8", in_both(renamed(q_int8="embed.weight"))),
    ("R32", "malformed", SHARD, "header.q_int8", in_both(twice_stored)),
    ("R29", "foreign", "notes.txt", "the file itself", lambda root: (root / "notes.txt").touch()),
    ("R29", "foreign", "experts/.x.partial", "the file itself", lambda root: (root / "experts/.x.partial").touch()),
    ("R29", "foreign", "experts/x", "the file itself", lambda root: (root / "experts/x").symlink_to("/")),
]


def edit_manifest(root: Path, change: Callable[[Json], None]) -> None:
    path = root / "coterie.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_bytes(seal_manifest(manifest))


def ids(cases: list[Any]) -> list[str]:
    return [f"{case[0]}-{number}" for number, case in enumerate(cases)]


def assert_refused(root: Path, rule: str, place: str) -> None:
    """Both ways to look at a store name the manifest, the rule and the place."""
    with pytest.raises(StoreFormatError) as caught:
        Store.open(root)
    assert (caught.value.rule, caught.value.place) == (rule, place), caught.value
    assert caught.value.path == root / "coterie.json"
    assert str(root / "coterie.json") in str(caught.value)
    report = verify_store(root)
    assert [(one.kind, one.file, one.rule, one.place) for one in report.problems] == [
        ("malformed", "coterie.json", rule, place)
    ]


@pytest.mark.parametrize(("rule", "place", "change"), MANIFEST_CASES, ids=ids(MANIFEST_CASES))
def test_manifest_rules(rule: str, place: str, change: Callable[[Json], None], store: Path) -> None:
    edit_manifest(store, change)
    assert_refused(store, rule, place)


@pytest.mark.parametrize(("rule", "place", "change"), TEXT_CASES, ids=ids(TEXT_CASES))
def test_manifest_text_rules(rule: str, place: str, change: Callable[[bytes], bytes], store: Path) -> None:
    path = store / "coterie.json"
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    assert_refused(store, rule, place)


@pytest.mark.parametrize(("rule", "kind", "file", "place", "change"), FILE_CASES, ids=ids(FILE_CASES))
def test_file_rules(rule: str, kind: str, file: str, place: str, change: Callable[[Path], None], store: Path) -> None:
    change(store)
    problems = verify_store(store).problems
    assert (rule, kind, file, place) in [(one.rule, one.kind, one.file, one.place) for one in problems], problems
    if rule in ("R1", "R20"):
        with pytest.raises(StoreFormatError) as caught:
            Store.open(store)
        assert caught.value.rule == rule
    elif (rule, file) == ("R28", "config.json"):
        with pytest.raises(ChecksumError, match=r"config\.json differs from its checksum"):
            Store.open(store)
    else:
        Store.open(store)


def test_every_rule_of_the_document_has_a_malformed_store() -> None:
    documented = re.findall(r"^- \*\*(R\d+)\*\*", DOCUMENT.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented)) == 37
    tested = {case[0] for cases in (MANIFEST_CASES, TEXT_CASES, FILE_CASES) for case in cases}
    assert tested == set(documented)


def test_schemes_by_part_are_read_as_they_were_written(store: Path) -> None:
    edit_manifest(store, in_parts({"attention": "int8", "encoders": "native"}))
    manifest = Store.open(store).manifest
    assert (manifest.version, str(manifest.dense_schemes)) == (2, "attention=int8,encoders=native")
    assert manifest_bytes(manifest).strip() == (store / "coterie.json").read_bytes()


@pytest.mark.parametrize("schemes", [{"attention": "int3", "encoders": "native"}, {"attention": "int2"}])
def test_schemes_that_earlier_versions_do_not_have(store: Path, schemes: dict[str, str]) -> None:
    one = DenseSchemes.of_parts(schemes)
    if one.by_part:
        edit_manifest(store, in_parts(schemes, version=3))
    else:
        edit_manifest(store, at("dense", "scheme", value=one.scheme))
        edit_manifest(store, at("version", value=3))
    manifest = Store.open(store).manifest
    assert (manifest.version, manifest.dense_schemes) == (3, one)
    assert manifest_bytes(manifest).strip() == (store / "coterie.json").read_bytes()


def test_what_calibrated_records_are_off_by_is_read_as_it_was_written(store: Path) -> None:
    edit_manifest(store, calibrated())
    manifest = Store.open(store).manifest
    assert manifest.version == 4
    assert manifest.banks[0].segments[0].records[2].errors == RecordErrors(**ERRORS)
    assert manifest.calibration == CalibrationFacts(fingerprint="0" * 64, tokens={"code": 1})
    assert manifest_bytes(manifest).strip() == (store / "coterie.json").read_bytes()


def test_what_bits_were_allocated_by_is_read_as_it_was_written(store: Path) -> None:
    edit_manifest(store, allocated())
    manifest = Store.open(store).manifest
    assert manifest.version == 4
    facts = AllocationFacts(
        criterion="energy",
        bits=3500,
        domains=("code", "german"),
        tokens_of={"thinker": ("text of code", "text of german")},
        profile="0" * 32,
        left_out=2,
    )
    assert manifest.allocation == facts
    assert manifest.calibration is None
    assert manifest_bytes(manifest).strip() == (store / "coterie.json").read_bytes()
    edit_manifest(store, calibrated())
    assert Store.open(store).manifest.allocation == facts


def test_a_store_of_a_later_version_says_what_to_do(store: Path) -> None:
    edit_manifest(store, at("version", value=6))
    with pytest.raises(StoreFormatError, match=r"version 6, this program reads versions 1 to 5.*newer Coterie"):
        Store.open(store)


def test_the_documented_example_is_a_manifest(tmp_path: Path) -> None:
    from coterie.store.manifest_json import parse_manifest

    example = json.loads(re.search(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1))
    text = json.dumps(example).replace("\\u2026", "0" * 32)
    manifest = parse_manifest(seal_manifest(json.loads(text)), tmp_path)
    assert manifest.banks[0].records[5].nbytes == manifest.layouts["gate_up|down"].nbytes


def test_a_store_reached_through_a_link_opens(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    assert len(Store.open(tmp_path / "link").keys()) == 17
    assert verify_store(tmp_path / "link").ok


def test_unchanged_manifest_survives_the_editing_helper(tmp_path: Path) -> None:
    write_store(tmp_path)
    edit_manifest(tmp_path, lambda manifest: None)
    assert verify_store(tmp_path).ok
