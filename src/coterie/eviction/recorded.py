"""Recorded routing, read from a file as what a simulation replays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from coterie.errors import CoterieError, InputError, UsageError
from coterie.eviction.prompt_use import LAST_TOKENS
from coterie.eviction.trace import Group
from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.files.regular import regular_file
from coterie.spec import ExpertKey

ABSENT = 65535
"""The id where a token did not run a layer, or used fewer experts there."""
_MAX_LAYERS = 4096
TRACE_SCHEMA_VERSION = 1

_MAX_BYTES = 4 << 30
"""Of all arrays of an npz, expanded."""
_LINE = JsonLimits(nbytes=1 << 20)

ReplayedPhase = Literal["decode", "all"]
Ids = npt.NDArray[np.int64]
_Model = tuple[str, str | None]
"""Name of a model, and its fingerprint if that is known."""


class _DamagedError(ValueError):
    """A trace is not what it must be; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrace:
    """The routing of a run.

    Attributes:
        name: Name of the file.
        model: Name of the model, as the file has it.
        groups: What each layer needed in each step, in order.
        tokens: Tokens in these groups; with several components, of the one that has most.
        layers: Banks of experts.
        experts: Experts of the model; where the file does not say, as many as its highest ids make certain.
        experts_known: Whether the file says how many experts there are.
        identity: Fingerprint of the model; None if the file does not have it.
    """

    name: str
    model: str
    groups: tuple[Group[ExpertKey], ...]
    tokens: int
    layers: int
    experts: int
    experts_known: bool
    identity: str | None = None

    @property
    def working_set(self) -> float:
        """Experts that one step needs, on average."""
        steps = len({group.step for group in self.groups})
        return sum(len(group.keys) for group in self.groups) / steps


@dataclass(frozen=True, slots=True)
class _Part:
    """One component: ids [tokens, layers, k], and of each token its step and whether it is of a prefill."""

    component: str
    ids: Ids
    steps: Ids
    prefill: npt.NDArray[np.bool_]
    layers: list[int]
    banks: list[str]
    num_experts: list[int] | None


def read_trace(path: str | Path, *, phase: ReplayedPhase = "decode") -> RecordedTrace:
    """Reads a trace that ``--record-trace`` wrote (``.npz`` or ``.jsonl``), or a plain npz.

    A plain one has ``expert_ids`` [tokens, layers, k], ``sequence_lengths`` (they sum up to the tokens) and
    ``num_experts``, and all its tokens count as decoded.

    Args:
        path: The file.
        phase: ``"decode"`` leaves prefills out; ``"all"`` keeps them: their misses are inserted cold, but
            for what their last tokens use.

    Raises:
        InputError: If the file is missing, damaged or contradicts itself.
        UsageError: If nothing is left of it, because it holds prefills only.
    """
    file = Path(path)
    try:
        return _trace(file, phase)
    except CoterieError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no trace {file}.", path=file) from None
    except OSError as error:
        raise InputError(f"The trace {file} cannot be read: {error.strerror or error}.", path=file) from error
    except Exception as error:
        # Whatever NumPy, zipfile or wrong types in a stranger's file raise; their words are not advice for users.
        raise InputError(
            f"{file} is not a routing trace, or is damaged: {_explained(error)}.",
            advice="Record it again with `coterie generate --record-trace FILE.npz`.",
            path=file,
        ) from error


def _explained(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"{str(error.args[0])[:80]!r} is missing"
    return str(error) if isinstance(error, _DamagedError | JsonProblem) else "its content is not what a trace holds"


def _trace(file: Path, phase: ReplayedPhase) -> RecordedTrace:
    (model, identity), parts = _read_lines(file) if file.suffix == ".jsonl" else _read_arrays(file)
    for part in parts:
        _check(file, part)
    groups = tuple(_groups(parts, keep_prefill=phase == "all"))
    if not groups:
        raise UsageError(
            f"{file} holds no decoding.", advice="Generate more than one token, or give --phase all.", path=file
        )
    tokens = (part.ids.shape[0] if phase == "all" else int((~part.prefill).sum()) for part in parts)
    return RecordedTrace(
        name=file.name,
        model=model,
        groups=groups,
        tokens=max(tokens),
        layers=sum(len(part.layers) for part in parts),
        experts=sum(sum(part.num_experts or _least_experts(part.ids)) for part in parts),
        experts_known=all(part.num_experts is not None for part in parts),
        identity=identity,
    )


def _read_arrays(file: Path) -> tuple[_Model, list[_Part]]:
    with regular_file(file) as opened:
        if not zipfile.is_zipfile(opened):
            raise _DamagedError("it is neither an npz nor, by its name, a .jsonl")
        with zipfile.ZipFile(opened) as packed:
            if sum(member.file_size for member in packed.infolist()) > _MAX_BYTES:
                raise _DamagedError(f"it has more than {_MAX_BYTES:,} bytes of arrays")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as arrays:
            if "components" not in arrays:
                return _read_plain(file, arrays)
            _check_version(file, int(arrays["schema_version"]))
            parts = [
                _Part(
                    component=name,
                    ids=_as_ids(arrays[f"{name}.expert_ids"]),
                    steps=_as_ids(arrays[f"{name}.step"]),
                    prefill=arrays[f"{name}.phase"] == 0,
                    layers=arrays[f"{name}.layers"].tolist(),
                    banks=arrays[f"{name}.banks"].tolist(),
                    num_experts=arrays[f"{name}.num_experts"].tolist(),
                )
                for name in arrays["components"].tolist()
            ]
            return (str(arrays["model"]), str(arrays["identity"])), parts


def _read_plain(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[_Model, list[_Part]]:
    ids = _as_ids(arrays["expert_ids"])
    if ids.ndim != 3:
        raise _DamagedError(f"expert_ids has the shape {list(ids.shape)} instead of [tokens, layers, k]")
    tokens, layers, _ = ids.shape
    lengths = _as_ids(arrays["sequence_lengths"])
    if int(lengths.sum()) != tokens or (lengths < 0).any():
        raise InputError(
            f"{file}: sequence_lengths sum up to {int(lengths.sum())}, but there are {tokens} tokens.",
            path=file,
            expected=tokens,
            got=int(lengths.sum()),
        )
    part = _Part(
        component="text",
        ids=ids,
        steps=np.arange(tokens, dtype=np.int64),
        prefill=np.zeros(tokens, dtype=np.bool_),
        layers=list(range(layers)),
        banks=["mlp"] * layers,
        num_experts=[int(arrays["num_experts"])] * layers,
    )
    return (str(arrays["model"]) if "model" in arrays else "unknown", None), [part]


def _read_lines(file: Path) -> tuple[_Model, list[_Part]]:
    with regular_file(file) as opened:
        head = parse_json(_line(opened), _LINE)
        lines = []
        while line := _line(opened):
            if line.strip():
                lines.append(parse_json(line, _LINE))
    _check_version(file, int(head["schema_version"]))
    by_component: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_component.setdefault(str(line["component"]), []).append(line)
    return (str(head["model"]), str(head["identity"])), [
        _part_of_lines(name, own) for name, own in by_component.items()
    ]


def _line(file: BinaryIO) -> bytes:
    """The next line; an empty one at the end of the file."""
    line = file.readline(_LINE.nbytes + 1)
    if len(line) > _LINE.nbytes:
        raise _DamagedError(f"a line has more than {_LINE.nbytes:,} bytes")
    return line


def _part_of_lines(component: str, lines: list[dict[str, Any]]) -> _Part:
    banks = sorted({(int(line["layer"]), str(line["bank"])) for line in lines})
    place = {bank: index for index, bank in enumerate(banks)}
    tokens = 1 + max(int(line["token"]) for line in lines)
    if tokens > len(lines):
        raise _DamagedError(f"it has {len(lines)} lines for {tokens} tokens of {component}")
    width = max(len(line["expert_ids"]) for line in lines)
    ids = np.full((tokens, len(banks), width), ABSENT, dtype=np.int64)
    steps = np.zeros(tokens, dtype=np.int64)
    prefill = np.zeros(tokens, dtype=np.bool_)
    for line in lines:
        row = int(line["token"])
        if row < 0:
            raise _DamagedError(f"it has the token {row}")
        ids[row, place[int(line["layer"]), str(line["bank"])], : len(line["expert_ids"])] = line["expert_ids"]
        steps[row], prefill[row] = line["step"], line["phase"] == "prefill"
    return _Part(component, ids, steps, prefill, [layer for layer, _ in banks], [bank for _, bank in banks], None)


def _as_ids(array: npt.NDArray[Any]) -> Ids:
    if array.dtype.kind not in "ui":
        raise _DamagedError(f"whole numbers were expected, not {array.dtype}")
    return array.astype(np.int64)


def _check_version(file: Path, version: int) -> None:
    if version != TRACE_SCHEMA_VERSION:
        raise InputError(
            f"{file} is a trace of version {version}; this Coterie reads version {TRACE_SCHEMA_VERSION}.",
            advice="Use the Coterie that wrote it, or record it again.",
            path=file,
            expected=TRACE_SCHEMA_VERSION,
            got=version,
        )


def _check(file: Path, part: _Part) -> None:
    """Shapes agree and every id is an expert's."""
    if part.ids.ndim != 3 or not part.ids.size:
        raise InputError(f"{file} has no routing of {part.component}: its shape is {part.ids.shape}.", path=file)
    if not all(isinstance(number, int) and number >= 0 for number in [*part.layers, *(part.num_experts or [])]):
        raise _DamagedError("its layers and experts are not numbered")
    if not all(isinstance(name, str) for name in [part.component, *part.banks]):
        raise _DamagedError("its components and banks have no names")
    tokens, layers, _ = part.ids.shape
    lengths = {
        "step": (part.steps.shape, (tokens,)),
        "phase": (part.prefill.shape, (tokens,)),
        "layers": ((len(part.layers),), (layers,)),
        "banks": ((len(part.banks),), (layers,)),
        "num_experts": ((layers if part.num_experts is None else len(part.num_experts),), (layers,)),
    }
    for name, (got, expected) in lengths.items():
        if got != expected:
            raise InputError(
                f"{file}: {part.component}.{name} has the shape {list(got)}, its expert_ids want {list(expected)}.",
                path=file,
                expected=expected,
                got=got,
            )
    if layers > _MAX_LAYERS:
        raise InputError(f"{file} has {layers} layers; {_MAX_LAYERS} are the most.", path=file, got=layers)
    limits = np.array(part.num_experts or [ABSENT] * layers, dtype=np.int64)[None, :, None]
    wrong = ((part.ids < 0) | (part.ids >= limits)) & (part.ids != ABSENT)
    if wrong.any():
        token, layer, slot = (int(number) for number in np.argwhere(wrong)[0])
        raise InputError(
            f"{file}: token {token}, layer {part.layers[layer]} of {part.component} names expert "
            f"{part.ids[token, layer, slot]}, but the layer has {int(limits[0, layer, 0])}.",
            path=file,
            expected=int(limits[0, layer, 0]),
            got=int(part.ids[token, layer, slot]),
        )


def _least_experts(ids: Ids) -> list[int]:
    highest: list[int] = np.where(ids == ABSENT, -1, ids).max(axis=(0, 2)).tolist()
    return [number + 1 for number in highest]


def _groups(parts: list[_Part], *, keep_prefill: bool) -> Iterator[Group[ExpertKey]]:
    """Step by step, within a step component by component, within these layer by layer."""
    runs: list[tuple[int, int, int, int]] = []
    for number, part in enumerate(parts):
        starts = np.flatnonzero(np.diff(part.steps, prepend=part.steps[0] - 1)).tolist()
        for first, end in zip(starts, [*starts[1:], len(part.steps)], strict=True):
            runs.append((int(part.steps[first]), number, first, end))
    keys: dict[ExpertKey, ExpertKey] = {}
    offsets = np.cumsum([0, *(len(part.layers) for part in parts)]).tolist()
    for step, number, first, end in sorted(runs):
        part = parts[number]
        prefill = bool(part.prefill[first])
        if prefill and not keep_prefill:
            continue
        for index, rows in enumerate(part.ids[first:end].swapaxes(0, 1).tolist()):
            bank = (part.component, part.layers[index], part.banks[index])

            def chosen(ids: Iterable[int], bank: tuple[str, int, str] = bank) -> tuple[ExpertKey, ...]:
                found = (ExpertKey(*bank, expert) for expert in dict.fromkeys(ids) if expert != ABSENT)
                # One object for each key: a trace has a million of them.
                return tuple(keys.setdefault(key, key) for key in found)

            members = chosen(chain.from_iterable(rows))
            last = tuple(filter(None, map(chosen, rows[-LAST_TOKENS:]))) if prefill and end - first > 1 else ()
            if members:
                yield Group(step=step, layer=offsets[number] + index, keys=members, prefill=prefill, last=last)
