"""A model with fewer experts, made of another one: experts are renumbered, and routers keep their rows only.

The router of a pruned model has never had the other experts: it normalises over those that are left. That is another
model than one whose absent experts are masked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import xxhash

from coterie.checkpoint import PackedWeight, Router, TensorInfo, model_identity, router_names
from coterie.errors import UnsupportedError
from coterie.hf.bank_sizes import BankSizes, banks_around
from coterie.hf.banks import ExpertBank, find_banks
from coterie.hf.configs import read_config, resolve_model
from coterie.hf.expert_counts import with_expert_counts
from coterie.hf.keymap import KeyMap
from coterie.hf.quantisation import Quantisation
from coterie.hf.skeleton import build_skeleton
from coterie.origins.cut import Cut
from coterie.origins.origin import Origin, OriginBank, OriginModel
from coterie.origins.packed_dense import PackedDense
from coterie.origins.selection import SELECTION_FILE, Selection
from coterie.origins.stored_dense import StoredLinear
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.quant.packed import Rounded
from coterie.records.remote import RangeReader
from coterie.records.remote.ahead import Range
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import CalibrationFacts, RecordErrors

Kept = Mapping[BankKey, tuple[int, ...]]
"""Bank → numbers in the source of the experts that stay, in their new order."""


class PrunedOrigin:
    """An :class:`~coterie.origins.Origin` that has some of the experts of another.

    Args:
        base: The other one.
        kept: Of every bank of it, the experts that stay.
        selection: What the model says of its pruning.

    Raises:
        UnsupportedError: If the model has something that depends on experts in a way that is not known.
    """

    def __init__(self, base: Origin, kept: Kept, selection: Selection) -> None:
        self._base = base
        self._kept = dict(kept)
        self._selection = selection.to_bytes()
        self._config, self.model = _pruned_model(base, self._kept)
        self.cuts: Mapping[str, Cut] = _cuts(base, self.model, self._kept)

    @property
    def directory(self) -> Path:
        """Where the source's files are."""
        return self._base.directory

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the pruned model: that which a checkpoint made of it has."""
        plain = self.tensors.keys() - self.packed.keys()
        shapes = {name: self._shape(name) for name in self.model.keymap.dense if name in plain}
        dense = {name: target for name, target in self.model.keymap.dense.items() if name in shapes}
        names = router_names((bank.bank for bank in self.model.banks.values()), dense, shapes)
        self.download(name for found in names.values() for name in found)
        return model_identity(
            self.model.class_name, ((key, map(self._router, found)) for key, found in sorted(names.items()))
        )

    @property
    def integrity(self) -> str:
        """Fingerprint of the checkpoint that the source is, or was made from."""
        return self._base.integrity

    @property
    def made_from(self) -> str:
        """What identifies the selection, and the source if that has lost something."""
        return str(xxhash.xxh3_128_hexdigest(self._base.made_from.encode() + self._selection))

    def scheme(self, key: ExpertKey) -> str:
        """The scheme in which an expert lies in the source."""
        return self._base.scheme(self._of(key))

    def errors(self, key: ExpertKey) -> RecordErrors | None:
        """What the expert's record in the source is off by."""
        return self._base.errors(self._of(key))

    @property
    def calibration(self) -> CalibrationFacts | None:
        """What codes of the source were chosen by."""
        return self._base.calibration

    @property
    def allocation(self) -> None:
        """None: bits were allocated to all experts of the source, not to those that stay."""

    def sources(self, bank: BankKey) -> tuple[str, ...]:
        """The checkpoint's tensors that a bank comes from."""
        return self._base.sources(bank)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The source's tensors; :attr:`cuts` says which are taken in part only."""
        return self._base.tensors

    @property
    def dense_schemes(self) -> DenseSchemes:
        """The schemes of linear layers outside experts."""
        return self._base.dense_schemes

    @property
    def linears(self) -> Mapping[str, StoredLinear]:
        """Weights of linear layers in a scheme, by name."""
        return self._base.linears

    @property
    def packed(self) -> Mapping[str, PackedWeight]:
        """The source's packed weights."""
        return self._base.packed

    @property
    def packed_dense(self) -> PackedDense:
        """What becomes of those outside experts."""
        return self._base.packed_dense

    @property
    def rounded(self) -> Rounded:
        """What was rounded so far of packed weights that were read into schemes."""
        return self._base.rounded

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """See :class:`~coterie.origins.Origin`."""
        return self._base.stored_names(names)

    @property
    def quantisation(self) -> Quantisation | None:
        """How the checkpoint itself quantised its weights, or None."""
        return self._base.quantisation

    def side_files(self) -> Mapping[str, Path]:
        """The source's, without those that :meth:`changed_files` gives."""
        changed = self.changed_files()
        return {name: path for name, path in self._base.side_files().items() if name not in changed}

    def changed_files(self) -> Mapping[str, bytes]:
        """The configuration, with the new numbers of experts, and the file that says which experts these are."""
        return {"config.json": self._config, SELECTION_FILE: self._selection}

    def names_of(self, key: ExpertKey) -> list[str]:
        """The source's tensors that hold an expert."""
        return self._base.names_of(self._of(key))

    @property
    def cache(self) -> Path | None:
        """Where :meth:`download` puts files."""
        return self._base.cache

    def missing(self, names: Iterable[str]) -> Mapping[Path, int]:
        """See :class:`~coterie.origins.Origin`."""
        return self._base.missing(names)

    def download(self, names: Iterable[str]) -> None:
        """See :class:`~coterie.origins.Origin`."""
        self._base.download(names)

    @property
    def reader(self) -> RangeReader | None:
        """See :class:`~coterie.origins.Origin`."""
        return self._base.reader

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """See :class:`~coterie.origins.Origin`."""
        return self._base.ranges(names)

    def warn_left_out(self) -> None:
        """See :class:`~coterie.origins.Origin`."""
        self._base.warn_left_out()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """The experts that stay, by their new numbers."""
        return [key.expert(number) for key in self.model.banks for number in range(len(self._kept[key]))]

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        return self._base.layout(self._of(key))

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the source has the expert's bytes; None if they must be computed."""
        return self._base.extents(self._of(key))

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads a record; returns the bytes read."""
        return self._base.read_into(self._of(key), record)

    def checksum(self, key: ExpertKey) -> str | None:
        """That of the source's record, where it has one."""
        return self._base.checksum(self._of(key))

    def _of(self, key: ExpertKey) -> ExpertKey:
        """The expert in the source."""
        return key.bank_key.expert(self._kept[key.bank_key][key.expert])

    def _shape(self, name: str) -> tuple[int, ...]:
        shape, cut = self.tensors[name].shape, self.cuts.get(name)
        return shape if cut is None else cut.shape(shape)

    def _router(self, name: str) -> Router:
        info = self.tensors[name]
        cut = self.cuts.get(name) or Cut(dimension=0, kept=tuple(range(info.shape[0])))
        return self.model.keymap.dense[name], self._shape(name), cut.read(info)


def _pruned_model(base: Origin, kept: Kept) -> tuple[bytes, OriginModel]:
    """The content of the pruned model's configuration, and the model.

    The configuration has the largest number of experts that any layer of a component has.
    """
    old = base.model
    stated = _stated(base)
    counts = {
        component: (before, max(len(kept[key]) for key in old.banks if key.component == component))
        for component, before in stated.items()
    }
    changed = base.changed_files().get("config.json")
    raw = read_config(base.directory) if changed is None else json.loads(changed)
    raw, config = with_expert_counts(raw, old.config, counts)
    skeleton = build_skeleton(*resolve_model(config, old.component), old.dtype, path=base.directory / "config.json")
    BankSizes.of(skeleton, {key: len(experts) for key, experts in kept.items()}).apply(skeleton)
    banks = {bank.key: bank for bank in find_banks(skeleton)}
    for key, before in old.banks.items():
        got = banks[key].num_experts if key in banks else None
        if got != len(kept[key]) or banks[key].parameters != before.bank.parameters:
            raise UnsupportedError(
                f"{key} does not get {len(kept[key])} experts by the configuration's number of experts.",
                advice="This model's layers take their numbers of experts from somewhere else; it cannot be pruned.",
                bank=str(key),
                expected=len(kept[key]),
                got=got,
            )
    model = replace(
        old,
        config=config,
        skeleton=skeleton,
        banks={key: OriginBank(bank=banks[key], layout=bank.layout) for key, bank in old.banks.items()},
        keymap=_with_banks(old.keymap, list(banks.values())),
    )
    return json.dumps(raw, indent=2).encode() + b"\n", model


def _stated(base: Origin) -> dict[str, int]:
    """Component → the number of experts that its configuration states: that of its largest layers."""
    found: dict[str, int] = {}
    for key, bank in base.model.banks.items():
        found[key.component] = max(bank.bank.num_experts, found.get(key.component, 0))
    return found


def _with_banks(keymap: KeyMap, banks: list[ExpertBank]) -> KeyMap:
    return replace(keymap, banks=banks, experts={})


def _cuts(base: Origin, pruned: OriginModel, kept: Kept) -> dict[str, Cut]:
    """The tensors outside experts that have entries for each expert: those whose shape differs in the pruned model."""
    before, after = (
        {name: tuple(tensor.shape) for name, tensor in model.skeleton.state_dict().items()}
        for model in (base.model, pruned)
    )
    found: dict[str, Cut] = {}
    for name, target in base.model.keymap.dense.items():
        info = None if name in base.packed else base.tensors.get(name)
        same = before.get(target) == after.get(target)
        banks = [] if target not in before else banks_around(target, [one.bank for one in base.model.banks.values()])
        if same and info is not None and banks and not TORCH_DTYPES[info.dtype].is_floating_point:
            _check_harmless(name, info, banks, kept, base.model)
        if same:
            continue
        if info is None:
            raise _unknown(name, "it is stored in a scheme")
        dimension = _dimension(name, info.shape, before[target], after[target], name in base.model.keymap.rearranged)
        keeps = {kept[bank.key] for bank in banks}
        if len(keeps) != 1:
            raise _unknown(name, f"it belongs to {len(banks)} banks of experts")
        experts = banks[0].num_experts
        others = info.shape[dimension] - experts
        if others < 0 or others != banks[0].identities:
            raise _unknown(name, f"it has {info.shape[dimension]} entries for {experts} experts")
        # Experts that compute without weights come last, and stay.
        identities = tuple(range(experts, experts + others))
        found[name] = Cut(dimension=dimension, kept=(*keeps.pop(), *identities))
    return found


def _dimension(
    name: str, shape: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], rearranged: bool
) -> int:
    """The dimension of a checkpoint's tensor that has an entry for each expert."""
    different = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if len(different) != 1:
        raise _unknown(name, f"it would change from {before} to {after}")
    if not rearranged and shape == before:
        return different[0]
    places = [place for place, size in enumerate(shape) if size == before[different[0]]]
    if len(places) != 1:
        raise _unknown(name, f"transformers rearranges it from {shape} to {before}")
    return places[0]


def _check_harmless(name: str, info: TensorInfo, banks: list[ExpertBank], kept: Kept, model: OriginModel) -> None:
    """Refuses integers beside experts: a table that names experts by their numbers, as of routers that hash tokens."""
    if all(len(kept[bank.key]) == bank.num_experts for bank in banks):
        return
    if info.dtype == "BOOL" or len(info.shape) == 0:
        return
    raise UnsupportedError(
        f"{name!r} holds whole numbers ({info.dtype} {list(info.shape)}) beside the experts of {banks[0].key}, as "
        "tables do that choose experts by token.",
        advice="Such a table would have to be learnt again for the experts that are left; prune another model.",
        tensor=name,
        model=model.class_name,
    )


def _unknown(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name!r} depends on the number of experts in a way that is not known: {why}.",
        advice="Models with such a tensor cannot be pruned.",
        tensor=name,
    )
