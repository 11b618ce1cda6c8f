"""``coterie.json``: the manifest as bytes, and back with every MUST rule of docs/format.md checked.

The reader treats the bytes as hostile: sizes and counts are bounded before anything is allocated, names can only be
those that the format derives, and unknown or missing keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import xxhash

from coterie.spec import DTYPE_BYTES, FIELD_ALIGNMENT, RECORD_ALIGNMENT, BankKey, Field, RecordLayout, round_up
from coterie.spec.dense_parts import SCHEMED_PARTS
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS
from coterie.store import names
from coterie.store.allocation_json import allocation_value, parse_allocation
from coterie.store.manifest import (
    CHOICES_VERSION,
    FORMAT_NAME,
    FORMAT_VERSION,
    GROUPS_VERSION,
    MAX_ERROR,
    PARTS_VERSION,
    SCHEMES_VERSION,
    Bank,
    CalibrationFacts,
    FileFacts,
    Manifest,
    ModelFacts,
    Record,
    RecordErrors,
    Segment,
    SourceFacts,
)
from coterie.store.scheme_fields import scheme_problem
from coterie.store.strict_json import Node, dump_json, parse_json

MAX_MANIFEST_BYTES = 64 * 2**20
MAX_BANKS = 100_000
MAX_EXPERTS = 65_536
MAX_LAYOUTS = 4_096
MAX_FIELDS = 64
MAX_DIMENSIONS = 8
MAX_RECORD_BYTES = 2**40
MAX_NAMES = 1_000_000
MAX_DOMAINS = 1_024
MAX_SEQUENCES = 1_000_000

_FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
_SEQUENCE = re.compile(r"[0-9a-f]{16}")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_SCHEME = re.compile(r"[a-z][a-z0-9_.\-]{0,63}")
_RECORD_SCHEME = re.compile(rf"{_SCHEME.pattern}(?:\+{_SCHEME.pattern}){{0,7}}")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one byte sequence for this manifest: sorted keys, no blanks, no timestamps, a newline at the end."""
    index = manifest.dense_index
    value = {
        "format": FORMAT_NAME,
        "version": manifest.version,
        "model": {
            "class": manifest.model.class_name,
            "model_type": manifest.model.model_type,
            "component": manifest.model.component,
            "identity": manifest.model.identity,
        },
        "source": {
            "name": manifest.source.name,
            "revision": manifest.source.revision,
            "integrity": manifest.source.integrity,
        },
        "layouts": {name: _layout_value(layout) for name, layout in manifest.layouts.items()},
        "banks": [_bank_value(bank) for bank in manifest.banks],
        "dense": {
            "shards": [_file_value(facts) for facts in manifest.dense],
            "index": None if index is None else _file_value(index),
            **_schemes_value(manifest.dense_schemes),
        },
        "files": [_file_value(facts) for facts in manifest.files],
        "ignored": list(manifest.ignored),
        **_calibration_value(manifest.calibration),
        **({} if manifest.allocation is None else {"allocation": allocation_value(manifest.allocation)}),
    }
    return seal_manifest(value) + b"\n"


def _calibration_value(facts: CalibrationFacts | None) -> dict[str, object]:
    if facts is None:
        return {}
    return {
        "calibration": {
            "fingerprint": facts.fingerprint,
            "tokens": dict(facts.tokens),
            "sequences": list(facts.sequences),
        }
    }


def _schemes_value(schemes: DenseSchemes) -> dict[str, object]:
    if schemes.by_part:
        return {"schemes": dict(schemes.by_part)}
    return {} if schemes.scheme == NATIVE else {"scheme": schemes.scheme}


def seal_manifest(value: dict[str, object]) -> bytes:
    """The object as canonical JSON with its checksum (rule R30) put in."""
    body = {name: item for name, item in value.items() if name != "checksum"}
    return dump_json({**body, "checksum": str(xxhash.xxh3_128_hexdigest(dump_json(body)))})


def _layout_value(layout: RecordLayout) -> dict[str, object]:
    fields = [
        {"name": field.name, "dtype": field.dtype, "shape": list(field.shape), "offset": field.offset}
        for field in layout.fields
    ]
    return {"fields": fields, "bytes": layout.nbytes}


def _bank_value(bank: Bank) -> dict[str, object]:
    return {
        "component": bank.key.component,
        "layer": bank.key.layer,
        "bank": bank.key.bank,
        "num_experts": bank.num_experts,
        "top_k": bank.top_k,
        "sources": list(bank.sources),
        "weightless": list(bank.weightless),
        "segments": [
            {
                "file": segment.file,
                "bytes": segment.nbytes,
                "experts": [
                    {
                        "id": record.expert,
                        "offset": record.offset,
                        "bytes": record.nbytes,
                        "scheme": record.scheme,
                        "layout": record.layout,
                        "xxh3": record.checksum,
                        **_errors_value(record.errors),
                    }
                    for record in segment.records
                ],
            }
            for segment in bank.segments
        ],
    }


def _errors_value(errors: RecordErrors | None) -> dict[str, object]:
    if errors is None:
        return {}
    return {"errors": {"output": errors.output, "nearest": errors.nearest, "weights": dict(errors.weights)}}


def _file_value(facts: FileFacts) -> dict[str, object]:
    return {"file": facts.file, "bytes": facts.nbytes, "xxh3": facts.checksum}


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Reads the content of a manifest.

    Args:
        data: At most ``MAX_MANIFEST_BYTES`` bytes.
        path: The manifest's file, for messages.

    Raises:
        StoreFormatError: With file, rule and place, if a MUST rule is broken.
    """
    root = parse_json(data, path, rule="R2")
    version = _read_version(root)
    names_of_all = ("format", "version", "model", "source", "layouts", "banks", "dense", "files", "ignored", "checksum")
    choices = ("calibration", "allocation") if version >= CHOICES_VERSION else ()
    top = root.fields(*names_of_all, optional=choices)
    if version == CHOICES_VERSION and not top.keys() & set(choices):
        raise top["version"].error("R36", "there is neither a calibration nor an allocation")
    digest = str(xxhash.xxh3_128_hexdigest(root.canonical(without="checksum")))
    if top["checksum"].text(_CHECKSUM, rule="R30") != digest:
        raise top["checksum"].error("R30", f"the checksum of the manifest's content is {digest}")
    layouts = _layouts(top["layouts"])
    banks = _banks(top["banks"], layouts)
    records = [record for bank in banks for segment in bank.segments for record in segment.records]
    if "calibration" not in top and any(record.errors is not None for record in records):
        raise top["banks"].error("R35", "records have errors, and the manifest has no calibration")
    used = {record.layout for record in records}
    unused = layouts.keys() - used
    if unused:
        raise top["layouts"].error("R7", f"no record uses the layout {min(unused)!r}")
    dense, dense_index, dense_schemes = _dense(top["dense"], version)
    manifest = Manifest(
        model=_model(top["model"]),
        source=_source(top["source"]),
        layouts=layouts,
        banks=banks,
        dense=dense,
        dense_index=dense_index,
        files=_side_files(top["files"]),
        ignored=_sorted_texts(top["ignored"], "R19"),
        dense_schemes=dense_schemes,
        calibration=_calibration(top["calibration"]) if "calibration" in top else None,
        allocation=parse_allocation(top["allocation"]) if "allocation" in top else None,
    )
    _check_groups(top["version"], version, manifest.own_groups)
    _check_schemes(top["version"], version, manifest.later_schemes)
    return manifest


def _check_groups(node: Node, version: int, own: set[str]) -> None:
    if version < GROUPS_VERSION and own:
        raise node.error("R37", f"the scheme {min(own)!r} needs version {GROUPS_VERSION}")
    if version == GROUPS_VERSION and not own:
        raise node.error("R37", "an earlier version can say the same")


def _check_schemes(node: Node, version: int, later: set[str]) -> None:
    known = sorted(one for one in later if one in SCHEME_FORMATS or "+" in one)
    if version < SCHEMES_VERSION and known:
        raise node.error("R34", f"the scheme {known[0]!r} needs version {SCHEMES_VERSION}")
    if version == SCHEMES_VERSION and not later:
        raise node.error("R34", "an earlier version can say the same")


def _read_version(root: Node) -> int:
    """The version comes first: the keys of another version are not judged by this one's rules."""
    members = dict(root.members(limit=64))
    if "format" not in members or members["format"].text(rule="R5") != FORMAT_NAME:
        raise root.error("R5", f"the format is not {FORMAT_NAME!r}")
    if "version" not in members:
        raise root.error("R5", "there is no format version")
    version = members["version"].integer(0, rule="R5")
    if not FORMAT_VERSION <= version <= GROUPS_VERSION:
        raise members["version"].error(
            "R5",
            f"the store has format version {version}, this program reads versions {FORMAT_VERSION} to {GROUPS_VERSION}",
            advice="Install a newer Coterie." if version > GROUPS_VERSION else "Extract the store again.",
        )
    return version


def _model(node: Node) -> ModelFacts:
    value = node.fields("class", "model_type", "component", "identity")
    component = value["component"]
    return ModelFacts(
        class_name=value["class"].text(limit=256, rule="R6"),
        model_type=value["model_type"].text(limit=256, rule="R6"),
        component=None if component.is_null else component.text(names.NAME, rule="R6"),
        identity=value["identity"].text(_FINGERPRINT, rule="R6"),
    )


def _source(node: Node) -> SourceFacts:
    value = node.fields("name", "revision", "integrity")
    revision = value["revision"]
    return SourceFacts(
        name=value["name"].text(rule="R6"),
        revision=None if revision.is_null else revision.text(limit=256, rule="R6"),
        integrity=value["integrity"].text(_FINGERPRINT, rule="R6"),
    )


def _calibration(node: Node) -> CalibrationFacts:
    value = node.fields("fingerprint", "tokens", "sequences")
    tokens = {
        Node(domain, node.path, value["tokens"], domain).text(limit=256, rule="R35"): item.integer(1, rule="R35")
        for domain, item in value["tokens"].members(limit=MAX_DOMAINS)
    }
    sequences: list[str] = []
    for item in value["sequences"].items(limit=MAX_SEQUENCES):
        sequence = item.text(_SEQUENCE, rule="R35")
        if sequences and sequence <= sequences[-1]:
            raise item.error("R35", f"{sequence} is not after {sequences[-1]}")
        sequences.append(sequence)
    return CalibrationFacts(
        fingerprint=value["fingerprint"].text(_FINGERPRINT, rule="R35"), tokens=tokens, sequences=tuple(sequences)
    )


def _errors(node: Node, scheme: str) -> RecordErrors:
    if not set(scheme.split("+")) & SCHEME_FORMATS.keys():
        raise node.error("R35", f"a record of the scheme {scheme!r} has no codes that calibration could choose")
    value = node.fields("output", "nearest", "weights")
    output, nearest = (value[name].integer(0, MAX_ERROR, rule="R35") for name in ("output", "nearest"))
    weights = {
        Node(name, node.path, value["weights"], name).text(limit=256, rule="R35"): item.integer(0, rule="R35")
        for name, item in value["weights"].members(limit=MAX_FIELDS)
    }
    if not weights:
        raise value["weights"].error("R35", "no matrix is named")
    if output > nearest:
        raise value["output"].error("R35", f"{output} is more than the {nearest} of rounding to nearest")
    return RecordErrors(output=output, nearest=nearest, weights=weights)


def _layouts(node: Node) -> dict[str, RecordLayout]:
    layouts: dict[str, RecordLayout] = {}
    for name, item in node.members(limit=MAX_LAYOUTS):
        checked = Node(name, node.path, node, name).text(limit=256, rule="R7")
        layouts[checked] = _layout(checked, item)
    return layouts


def _layout(name: str, node: Node) -> RecordLayout:
    value = node.fields("fields", "bytes")
    fields: list[Field] = []
    end = 0
    for item in value["fields"].items(limit=MAX_FIELDS):
        field = _field(item)
        if field.offset < end:
            raise item.error("R8", f"offset {field.offset} is within the field before, which ends at {end}")
        if any(field.name == other.name for other in fields):
            raise item.error("R8", f"the field {field.name!r} occurs twice")
        fields.append(field)
        end = field.offset + field.nbytes
    if not fields:
        raise value["fields"].error("R8", "a layout has at least one field")
    nbytes = value["bytes"].integer(1, MAX_RECORD_BYTES, rule="R9")
    if nbytes != round_up(end, RECORD_ALIGNMENT):
        raise value["bytes"].error("R9", f"{nbytes} bytes, not {end} rounded up to a multiple of {RECORD_ALIGNMENT}")
    return RecordLayout(name=name, fields=tuple(fields), nbytes=nbytes)


def _field(node: Node) -> Field:
    value = node.fields("name", "dtype", "shape", "offset")
    dtype = value["dtype"].text(rule="R8")
    if dtype not in DTYPE_BYTES:
        raise value["dtype"].error("R8", f"{dtype!r} is not a dtype of the format")
    shape = tuple(item.integer(1, rule="R8") for item in value["shape"].items(limit=MAX_DIMENSIONS))
    offset = value["offset"].integer(0, MAX_RECORD_BYTES, rule="R8")
    if offset % FIELD_ALIGNMENT:
        raise value["offset"].error("R8", f"offset {offset} is not a multiple of {FIELD_ALIGNMENT}")
    if prod(shape) > MAX_RECORD_BYTES:
        raise value["shape"].error("R8", f"more than {MAX_RECORD_BYTES} elements")
    return Field(name=value["name"].text(limit=256, rule="R8"), dtype=dtype, shape=shape, offset=offset)


def _banks(node: Node, layouts: Mapping[str, RecordLayout]) -> tuple[Bank, ...]:
    banks: list[Bank] = []
    for item in node.items(limit=MAX_BANKS):
        bank = _bank(item, layouts)
        if banks and bank.key <= banks[-1].key:
            raise item.error("R10", f"the bank {bank.key} comes after {banks[-1].key}: twice, or out of order")
        banks.append(bank)
    return tuple(banks)


def _bank(node: Node, layouts: Mapping[str, RecordLayout]) -> Bank:
    value = node.fields("component", "layer", "bank", "num_experts", "top_k", "sources", "weightless", "segments")
    key = BankKey(
        value["component"].text(names.NAME, rule="R10"),
        value["layer"].integer(0, names.MAX_LAYER, rule="R10"),
        value["bank"].text(names.NAME, rule="R10"),
    )
    num_experts = value["num_experts"].integer(1, MAX_EXPERTS, rule="R11")
    top_k = None if value["top_k"].is_null else value["top_k"].integer(1, num_experts, rule="R11")
    weightless = _ascending_ids(value["weightless"], num_experts, "R12")
    taken = set(weightless)
    segments: list[Segment] = []
    for number, item in enumerate(value["segments"].items(limit=names.MAX_SEGMENT)):
        segments.append(_segment(item, names.segment_file(key, number), num_experts, taken, layouts))
    return Bank(
        key=key,
        num_experts=num_experts,
        top_k=top_k,
        sources=tuple(item.text(rule="R10") for item in value["sources"].items(limit=MAX_NAMES)),
        weightless=weightless,
        segments=tuple(segments),
    )


def _ascending_ids(node: Node, num_experts: int, rule: str) -> tuple[int, ...]:
    ids: list[int] = []
    for item in node.items(limit=num_experts):
        ids.append(item.integer(ids[-1] + 1 if ids else 0, num_experts - 1, rule=rule))
    return tuple(ids)


def _segment(node: Node, file: str, num_experts: int, taken: set[int], layouts: Mapping[str, RecordLayout]) -> Segment:
    value = node.fields("file", "bytes", "experts")
    if value["file"].text(rule="R13") != file:
        raise value["file"].error("R13", f"the file of this segment must be {file!r}")
    records: list[Record] = []
    end = 0
    lowest = 0
    for item in value["experts"].items(limit=num_experts):
        record = _record(item, lowest, num_experts, layouts)
        if record.expert in taken:
            raise item.error("R14", f"expert {record.expert} has a record already or is weightless")
        if end and record.offset != end:
            raise item.error("R16", f"the record starts at {record.offset}, but the one before ends at {end}")
        taken.add(record.expert)
        records.append(record)
        lowest = record.expert + 1
        end = record.offset + record.nbytes
    if not records:
        raise value["experts"].error("R14", "a segment has at least one expert")
    nbytes = value["bytes"].integer(1, rule="R16")
    if nbytes != end:
        raise value["bytes"].error("R16", f"the file has {nbytes} bytes, but its last record ends at {end}")
    return Segment(file=file, nbytes=nbytes, records=tuple(records))


def _record(node: Node, lowest: int, num_experts: int, layouts: Mapping[str, RecordLayout]) -> Record:
    value = node.fields("id", "offset", "bytes", "scheme", "layout", "xxh3", optional=("errors",))
    expert = value["id"].integer(lowest, num_experts - 1, rule="R14")
    layout = value["layout"].text(limit=256, rule="R15")
    if layout not in layouts:
        raise value["layout"].error("R15", f"there is no layout {layout!r}")
    nbytes = value["bytes"].integer(1, rule="R15")
    if nbytes != layouts[layout].nbytes:
        raise value["bytes"].error("R15", f"{nbytes} bytes, but its layout has {layouts[layout].nbytes}")
    scheme = value["scheme"].text(_RECORD_SCHEME, rule="R15")
    problem = scheme_problem(scheme, layouts[layout])
    if problem is not None:
        raise value["layout"].error("R31", f"the layout {layout!r} is not one of {scheme}: {problem}")
    offset = value["offset"].integer(RECORD_ALIGNMENT, rule="R16")
    if offset % RECORD_ALIGNMENT:
        raise value["offset"].error("R16", f"offset {offset} is not a multiple of {RECORD_ALIGNMENT}")
    return Record(
        expert=expert,
        offset=offset,
        nbytes=nbytes,
        scheme=scheme,
        layout=layout,
        checksum=value["xxh3"].text(_CHECKSUM, rule="R15"),
        errors=_errors(value["errors"], scheme) if "errors" in value else None,
    )


def _dense(node: Node, version: int) -> tuple[tuple[FileFacts, ...], FileFacts | None, DenseSchemes]:
    by_part = version == PARTS_VERSION or (version >= SCHEMES_VERSION and node.has("schemes"))
    if by_part:
        value = node.fields("shards", "index", "schemes")
        schemes = _schemes_by_part(value["schemes"])
    else:
        value = node.fields("shards", "index", optional=("scheme",))
        schemes = DenseSchemes(_one_scheme(value["scheme"], "R32")) if "scheme" in value else NATIVE_EVERYWHERE
    shards = tuple(_file(item, "R17") for item in value["shards"].items(limit=99_999))
    for item, facts, expected in zip(
        value["shards"].items(limit=99_999), shards, names.dense_files(len(shards)), strict=True
    ):
        if facts.file != expected:
            raise item.error("R17", f"the shard must be named {expected!r}, not {facts.file!r}")
    if not shards:
        raise value["shards"].error("R17", "there is at least one dense file")
    if value["index"].is_null:
        if len(shards) > 1:
            raise value["index"].error("R17", "several shards need an index")
        return shards, None, schemes
    index = _file(value["index"], "R17")
    if len(shards) < 2 or index.file != names.DENSE_INDEX:
        raise value["index"].error(
            "R17", f"an index is named {names.DENSE_INDEX!r} and is there for several shards only"
        )
    return shards, index, schemes


def _one_scheme(node: Node, rule: str, *others: str) -> str:
    scheme = node.text(_SCHEME, rule=rule)
    valid = (*SCHEME_FORMATS, *others)
    if scheme not in valid:
        raise node.error(rule, f"{scheme!r} is not one of the schemes that docs/format.md lists")
    return scheme


def _schemes_by_part(node: Node) -> DenseSchemes:
    found: dict[str, str] = {}
    for part, item in node.members(limit=len(SCHEMED_PARTS)):
        if part not in SCHEMED_PARTS:
            raise item.error("R33", f"{part[:80]!r} is not one of {', '.join(SCHEMED_PARTS)}")
        found[part] = _one_scheme(item, "R33", NATIVE)
    schemes = DenseSchemes.of_parts(found)
    if not schemes.by_part:
        raise node.error("R33", f"version {FORMAT_VERSION} can say the same")
    return schemes


def _side_files(node: Node) -> tuple[FileFacts, ...]:
    files: list[FileFacts] = []
    folded: set[str] = set()
    for item in node.items(limit=4096):
        facts = _file(item, "R18")
        problem = names.side_file_problem(facts.file)
        if problem is not None:
            raise item.error("R18", f"{facts.file[:80]!r} is refused: {problem}")
        if files and facts.file <= files[-1].file:
            raise item.error("R18", f"{facts.file!r} occurs twice or out of order")
        # Two names that differ in case only are one file on macOS and Windows.
        if facts.file.casefold() in folded:
            raise item.error("R18", f"{facts.file!r} differs from another name in case only")
        folded.add(facts.file.casefold())
        files.append(facts)
    return tuple(files)


def _file(node: Node, rule: str) -> FileFacts:
    value = node.fields("file", "bytes", "xxh3")
    return FileFacts(
        file=value["file"].text(rule=rule),
        nbytes=value["bytes"].integer(0, rule=rule),
        checksum=value["xxh3"].text(_CHECKSUM, rule=rule),
    )


def _sorted_texts(node: Node, rule: str) -> tuple[str, ...]:
    texts: list[str] = []
    for item in node.items(limit=MAX_NAMES):
        text = item.text(rule=rule)
        if texts and text <= texts[-1]:
            raise item.error(rule, f"{text[:80]!r} occurs twice or out of order")
        texts.append(text)
    return tuple(texts)
