"""A finished store as what another store is made of.

Experts are read as the store has them, whatever their schemes. What a lossy scheme has taken is not there any more, so
a scheme can be changed for a smaller one only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from coterie.checkpoint import PackedWeight, TensorInfo, model_dtype
from coterie.errors import LoadError
from coterie.hf.bank_sizes import BankSizes
from coterie.hf.banks import ExpertBank
from coterie.hf.configs import check_architecture, load_config, load_quantisation, resolve_model
from coterie.hf.keymap import KeyMap, map_dense
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised import fold_names, unfold_keymap
from coterie.hf.shapes import check_shapes
from coterie.hf.skeleton import build_skeleton
from coterie.origins.cut import Cut
from coterie.origins.origin import OriginBank, OriginModel
from coterie.origins.packed_dense import PackedDense
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import StoredLinear, dense_headers, stored_linears
from coterie.quant.dtypes import SAFETENSORS_DTYPES
from coterie.quant.packed import Rounded
from coterie.records.remote.ahead import Range
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.spec.dense_schemes import DenseSchemes
from coterie.spec.encodings import NATIVE
from coterie.store import AllocationFacts, Bank, CalibrationFacts, RecordErrors, Store
from coterie.store.manifest_json import manifest_bytes
from coterie.store.names import CARD, FIT_FACTS

_TENSORS_PER_EXPERT = 6
"""More than any expert has: three matrices, each with a bias or scales."""


class StoreOrigin:
    """An :class:`~coterie.origins.Origin` whose experts are a store's records.

    Attributes:
        store: The store.
    """

    cache = None
    packed: Mapping[str, PackedWeight] = MappingProxyType({})
    packed_dense = PackedDense()
    rounded = Rounded()
    reader = None
    cuts: Mapping[str, Cut] = MappingProxyType({})

    def __init__(self, store: Store, opened: _Opened) -> None:
        """Made by :meth:`open`."""
        facts = store.manifest
        self.store = store
        self.tensors = opened.tensors
        self.linears = opened.linears
        self.quantisation = opened.quantisation
        self.model = OriginModel(
            name=facts.source.name,
            revision=facts.source.revision,
            component=facts.model.component,
            model_type=facts.model.model_type,
            config=opened.config,
            skeleton=opened.skeleton,
            banks={bank.key: _bank(bank, store.banks[bank.key], store) for bank in opened.keymap.banks},
            keymap=opened.keymap,
        )

    @classmethod
    def open(cls, path: Path) -> StoreOrigin:
        """Opens a store.

        Raises:
            StoreError: If it is damaged.
            LoadError: If the model that its configuration describes is not the one that it holds.
        """
        store = Store.open(path)
        return cls.of(store, dense_headers(store))

    @classmethod
    def at(cls, place: StorePlace, *, experts: bool = True, download: bool = True) -> StoreOrigin:
        """Opens a store where it was found.

        Args:
            place: Where.
            experts: Whether experts will be read, too: of a store on the Hub they are downloaded then.
            download: Whether anything will be read at all, but for headers.

        Raises:
            CheckpointFileError: If it is on the Hub, and cannot be downloaded.
            StoreError, LoadError: As :meth:`open`.
        """
        store = place.open(experts=experts) if download else place.look()
        return cls.of(store, place.headers(store))

    @classmethod
    def of(cls, store: Store, headers: Mapping[str, TensorInfo]) -> StoreOrigin:
        """Of a store that is open.

        Args:
            store: The store.
            headers: From :func:`~coterie.origins.stored_dense.dense_headers`.

        Raises:
            LoadError: As :meth:`open`.
        """
        return cls(store, _open_dense(store, headers))

    @property
    def directory(self) -> Path:
        """The store."""
        return self.store.path

    @property
    def identity(self) -> str:
        """Fingerprint of the model, which the manifest has."""
        return self.store.manifest.model.identity

    @property
    def integrity(self) -> str:
        """Fingerprint of the checkpoint that the store was made from."""
        return self.store.manifest.source.integrity

    @property
    def made_from(self) -> str:
        """What identifies a store that has lost something; empty for one that has not."""
        manifest = self.store.manifest
        schemes = {record.scheme for bank in manifest.banks for record in bank.records.values()}
        if schemes <= {NATIVE} and not manifest.dense_schemes.lossy:
            return ""
        return str(xxhash.xxh3_128_hexdigest(manifest_bytes(manifest)))

    @property
    def dense_schemes(self) -> DenseSchemes:
        """The schemes of linear layers outside experts."""
        return self.store.manifest.dense_schemes

    def scheme(self, key: ExpertKey) -> str:
        """The scheme of this expert's record."""
        return self.store.scheme(key)

    def errors(self, key: ExpertKey) -> RecordErrors | None:
        """What the manifest says that the record is off by."""
        return self.store.manifest.places[key][1].errors

    @property
    def calibration(self) -> CalibrationFacts | None:
        """What the manifest says that codes were chosen by."""
        return self.store.manifest.calibration

    @property
    def allocation(self) -> AllocationFacts | None:
        """What the manifest says that schemes were allocated by."""
        return self.store.manifest.allocation

    def sources(self, bank: BankKey) -> tuple[str, ...]:
        """The checkpoint's tensors that a bank comes from, as the manifest has them."""
        return self.store.banks[bank].sources

    def side_files(self) -> Mapping[str, Path]:
        """Those that the manifest names; without the card of a fit, whose figures are of this store alone."""
        files = {facts.file: self.store.path / facts.file for facts in self.store.manifest.files}
        return (
            {name: path for name, path in files.items() if name not in (FIT_FACTS, CARD)}
            if FIT_FACTS in files
            else files
        )

    def changed_files(self) -> Mapping[str, bytes]:
        """None: they are as a store has them."""
        return {}

    def names_of(self, key: ExpertKey) -> list[str]:
        """None: experts are records of their own."""
        return []

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """As they are."""
        return list(dict.fromkeys(names))

    def missing(self, names: Iterable[str]) -> Mapping[Path, int]:
        """None: a store is here."""
        return {}

    def download(self, names: Iterable[str]) -> None:
        """Does nothing: a store is here."""

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """None: a store is here."""
        return []

    def warn_left_out(self) -> None:
        """Does nothing: what was left out is not in the store."""

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """The experts that are here."""
        return self.store.keys()

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        return self.store.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the record lies; None if the expert is not here."""
        return self.store.extents(key) if key in self.store.keys() else None

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads a record; returns the bytes read."""
        return self.store.read_into(key, record)

    def checksum(self, key: ExpertKey) -> str:
        """That of the record."""
        return self.store.checksum(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What is found out about a store's tensors outside experts."""

    config: Any
    skeleton: Any
    keymap: KeyMap
    tensors: Mapping[str, TensorInfo]
    linears: Mapping[str, StoredLinear]
    quantisation: Quantisation | None


def _open_dense(store: Store, tensors: Mapping[str, TensorInfo]) -> _Opened:
    facts = store.manifest
    component = facts.model.component
    config = load_config(store.path)
    model_class, model_config = resolve_model(config, component)
    skeleton = build_skeleton(
        model_class,
        model_config,
        model_dtype(model_config, tensors),
        path=store.path / "config.json",
        tensors=tensors_about(len(tensors), sum(bank.num_experts for bank in store.banks.values())),
    )
    BankSizes.of(skeleton, {key: bank.num_experts for key, bank in store.banks.items()}).apply(skeleton)
    linears = stored_linears(tensors, facts.dense_schemes)
    parts = {info.name for linear in linears.values() for info in linear.tensors}
    quantisation = load_quantisation(store.path)
    folded = fold_names(quantisation, {name: info.dtype for name, info in tensors.items() if name not in parts})
    keymap = map_dense(skeleton, [*folded.names, *linears], component=component)
    unfold_keymap(keymap, folded, quantisation)
    keymap.ignored = list(facts.ignored)
    check_architecture(skeleton, len(keymap.banks))
    _check_dense(store, skeleton, keymap, tensors, parts)
    banks = {bank.key for bank in keymap.banks}
    if keymap.unclaimed or banks != store.banks.keys():
        odd = keymap.unclaimed[:1] or sorted(map(str, banks ^ store.banks.keys()))
        raise LoadError(
            f"{store.path} holds a {facts.model.class_name}, which has no place for {odd[0]!r}.",
            advice="Install the release of transformers that the store was made with, or extract it again.",
            path=store.path,
        )
    return _Opened(
        config=config, skeleton=skeleton, keymap=keymap, tensors=tensors, linears=linears, quantisation=quantisation
    )


def _check_dense(
    store: Store, skeleton: Any, keymap: KeyMap, tensors: Mapping[str, TensorInfo], parts: set[str]
) -> None:
    """Refuses dense tensors that opening the model would refuse."""
    facts = store.manifest.model
    advice = "config.json and the dense files do not belong together; extract the store again."
    name = type(skeleton).__name__
    if name != facts.class_name:
        raise LoadError(
            f"{store.path} holds a {facts.class_name}, its config.json describes a {name}.",
            advice=advice,
            path=store.path,
        )
    if keymap.missing:
        raise LoadError(
            f"{store.path} lacks {keymap.missing[0]!r}"
            + (f" and {len(keymap.missing) - 1} more tensors." if len(keymap.missing) > 1 else "."),
            advice=advice,
            path=store.path,
            missing=keymap.missing,
        )
    shapes = {name: tensors[name].shape for name in keymap.dense if name in tensors and name not in parts}
    check_shapes(skeleton, keymap, shapes, store.path / "config.json", LoadError)


def _bank(bank: ExpertBank, facts: Bank, store: Store) -> OriginBank:
    """The bank with the layout that its experts have in the checkpoint; where none tells, that of the model's dtype."""
    records = sorted(facts.records.values(), key=lambda record: record.scheme != NATIVE)
    layout = (
        store.manifest.layouts[records[0].layout]
        if records
        else bank.layout({name: SAFETENSORS_DTYPES[dtype] for name, dtype in bank.dtypes.items()})
    )
    return OriginBank(bank=bank, layout=layout)


def tensors_about(dense: int, experts: int) -> int:
    """About how many tensors a model was saved as that has so many tensors outside experts, and experts."""
    return dense + _TENSORS_PER_EXPERT * experts
