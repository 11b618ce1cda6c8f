"""A calibrated store that is not what calibration made of its checkpoint is found out, though all checksums fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash

from coterie.calibration import Calibration
from coterie.errors import UsageError
from coterie.extraction import extract, prune, quantize
from coterie.inspection import verify
from coterie.quant.dtypes import record_tensors
from coterie.spec import ExpertKey, RecordLayout
from coterie.store import Record, Store
from coterie.store.manifest_json import manifest_bytes
from extraction.stores import stored

Fields = dict[str, torch.Tensor]


def rewrite(path: Path, changes: dict[ExpertKey, bytes]) -> None:
    """Gives experts other bytes, and the manifest checksums that fit."""
    manifest = Store.open(path).manifest
    for key, data in changes.items():
        segment, record = manifest.places[key]
        with (path / segment.file).open("r+b") as file:
            file.seek(record.offset)
            file.write(data)

    def sealed(key: ExpertKey, record: Record) -> Record:
        return replace(record, checksum=str(xxhash.xxh3_128_hexdigest(changes[key]))) if key in changes else record

    banks = tuple(
        replace(
            bank,
            segments=tuple(
                replace(
                    segment,
                    records=tuple(sealed(bank.key.expert(record.expert), record) for record in segment.records),
                )
                for segment in bank.segments
            ),
        )
        for bank in manifest.banks
    )
    (path / "coterie.json").write_bytes(manifest_bytes(replace(manifest, banks=banks)))


def named(fields: Fields, parameter: str, dtype: torch.dtype) -> torch.Tensor:
    """A parameter's codes, or its scales and zeros."""
    (found,) = (one for name, one in fields.items() if name.startswith(parameter) and one.dtype == dtype)
    return found


def scaled(fields: Fields) -> None:
    named(fields, "gate_up_proj", torch.bfloat16).mul_(1.015625)


def rows_in_another_order(fields: Fields) -> None:
    for name, field in fields.items():
        if name.startswith("down_proj"):
            field.copy_(field.roll(1, 0))


def one_scale(fields: Fields) -> None:
    """The next number that bfloat16 has."""
    named(fields, "gate_up_proj", torch.bfloat16).view(torch.int16).view(-1)[6] += 1


def one_code(fields: Fields) -> None:
    named(fields, "down_proj", torch.uint8).view(-1)[5] ^= 1


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        (scaled, "gate_up_proj"),
        (rows_in_another_order, "down_proj"),
        (one_scale, "gate_up_proj"),
        (one_code, "down_proj"),
    ],
)
def test_changed_records_are_found(
    change: Callable[[Fields], None], parameter: str, readable: Path, fresh: Path
) -> None:
    store = Store.open(fresh)
    key = sorted(store.keys())[6]
    layout: RecordLayout = store.layout(key)
    record = bytearray(stored(store, key))
    change(
        {
            place.name: field
            for place, field in zip(layout.fields, record_tensors(memoryview(record), layout), strict=True)
        }
    )
    assert bytes(record) != stored(store, key)
    rewrite(fresh, {key: bytes(record)})
    assert verify(fresh).ok
    (problem,) = verify(fresh, against=readable).problems
    assert problem.place == f"expert {key.expert:05d}"
    assert f"{parameter} has a squared error" in problem.message


def test_experts_that_changed_places_are_found(readable: Path, fresh: Path) -> None:
    store = Store.open(fresh)
    one, other = sorted(store.keys())[2:4]
    rewrite(fresh, {one: stored(store, other), other: stored(store, one)})
    assert verify(fresh).ok
    places = {problem.place for problem in verify(fresh, against=readable).problems}
    assert places == {f"expert {one.expert:05d}", f"expert {other.expert:05d}"}


def test_what_is_made_of_a_calibrated_store_says_so_too(readable: Path, tmp_path: Path, fresh: Path) -> None:
    facts = Store.open(fresh).manifest.calibration
    quantize(fresh, tmp_path / "dense", dense_scheme="int8")
    assert Store.open(tmp_path / "dense").manifest.calibration == facts
    assert verify(tmp_path / "dense", against=readable).ok
    prune(fresh, tmp_path / "pruned", keep=6, by="random")
    pruned = Store.open(tmp_path / "pruned")
    assert pruned.manifest.calibration == facts
    assert all(pruned.manifest.places[key][1].errors is not None for key in pruned.keys())
    # Of codes that are rounded again nothing is known any more.
    quantize(fresh, tmp_path / "smaller", scheme="int2")
    assert Store.open(tmp_path / "smaller").manifest.calibration is None


def test_each_matrix_in_a_scheme_of_its_own(readable: Path, tmp_path: Path, calibration: Calibration) -> None:
    """An allocation of bits by expert and matrix, with codes chosen for each."""
    extract(readable, tmp_path / "native")
    store = Store.open(tmp_path / "native")
    keys = sorted(store.keys())
    names = [place.name for place in store.layout(keys[0]).fields]
    wanted = {keys[0]: "int2", keys[3]: dict(zip(names, ["native", "int3"], strict=True)), keys[-1]: "native"}
    given = {"schema_version": 1, "rest": "int4", "experts": {str(key): scheme for key, scheme in wanted.items()}}
    quantize(tmp_path / "native", tmp_path / "mixed", expert_schemes=given, calibration=calibration)
    mixed = Store.open(tmp_path / "mixed")
    for key in keys:
        errors = mixed.manifest.places[key][1].errors
        scheme = wanted.get(key, "int4")
        of_matrices = dict.fromkeys(names, scheme) if isinstance(scheme, str) else scheme
        chosen = {name for name, one in of_matrices.items() if one != "native"}
        assert (set() if errors is None else set(errors.weights)) == chosen, key
        assert errors is None or 0 < errors.output <= errors.nearest
    assert verify(tmp_path / "mixed", against=readable).ok


def test_what_was_in_its_scheme_already_is_rounded_as_it_was(
    readable: Path, tmp_path: Path, calibration: Calibration
) -> None:
    """A record of which one matrix is kept as it lies and the others are calibrated."""
    quantize(readable, tmp_path / "int8", scheme="int8")
    key = sorted(Store.open(tmp_path / "int8").keys())[1]
    schemes = {"gate_up_proj": "int8", "down_proj": "int4"}
    given = {"schema_version": 1, "rest": "int8", "experts": {str(key): schemes}}
    quantize(tmp_path / "int8", tmp_path / "mixed", expert_schemes=given, calibration=calibration)
    places = Store.open(tmp_path / "mixed").manifest.places
    assert {one for one, (_, record) in places.items() if record.errors is not None} == {key}
    errors = places[key][1].errors
    assert errors is not None
    assert set(errors.weights) == {"down_proj"}
    # Codes were chosen for what int8 had left: against the checkpoint that is another error, and only that.
    (problem,) = verify(tmp_path / "mixed", against=readable).problems
    assert "down_proj has a squared error" in problem.message


def test_codes_are_calibrated_once(tmp_path: Path, fresh: Path, calibration: Calibration) -> None:
    with pytest.raises(UsageError, match="is calibrated already"):
        quantize(fresh, tmp_path / "again", scheme="int2", calibration=calibration)
