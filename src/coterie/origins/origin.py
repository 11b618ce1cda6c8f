"""A finished store, seen as the checkpoint that it was made from: what another store can be made of.

Experts are read as the store has them, whatever their schemes. What a lossy scheme has taken is not there any more, so
a scheme can be changed for a smaller one only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from coterie.checkpoint import Checkpoint, CheckpointBank, Location, TensorInfo, model_dtype
from coterie.errors import LoadError, UsageError
from coterie.hf.banks import ExpertBank
from coterie.hf.configs import check_architecture, load_config, load_quantisation, read_config, resolve_model
from coterie.hf.keymap import KeyMap, map_dense
from coterie.hf.quantised import fold_names, unfold_keymap
from coterie.hf.shapes import check_shapes
from coterie.hf.skeleton import build_skeleton
from coterie.origins.side_files import side_files, with_dtype
from coterie.origins.stored_dense import dense_headers
from coterie.quant import linear_names, lossy_scheme
from coterie.quant.dtypes import SAFETENSORS_DTYPES
from coterie.spec import SCHEME_NAMES, BankKey, ExpertKey, Extent, RecordLayout
from coterie.spec.encodings import NATIVE
from coterie.store import Bank, Store
from coterie.store.manifest_json import manifest_bytes

SchemeOf = Callable[[ExpertKey], str]
"""The scheme in which an expert is wanted."""

_TENSORS_PER_EXPERT = 6
"""More than any expert has: three matrices, each with a bias or scales."""

_BY_SIZE = SCHEME_NAMES[::-1]


@dataclass(kw_only=True)
class StoreOrigin(Checkpoint):
    """A store with the interface of its checkpoint.

    Attributes:
        store: The store.
        pairs: Weights of linear layers in the store's dense scheme: name of the weight → codes and scales. The names of
            these two are in ``tensors``; those of ``keymap`` are the weights'.
    """

    store: Store
    pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]

    @classmethod
    def open_store(cls, path: Path) -> StoreOrigin:
        """Opens a store.

        Raises:
            StoreError: If it is damaged.
            LoadError: If the model that its configuration describes is not the one that it holds.
        """
        store = Store.open(path)
        facts = store.manifest
        config = load_config(store.path)
        model_class, model_config = resolve_model(config, facts.model.component)
        tensors = dense_headers(store)
        skeleton = build_skeleton(
            model_class,
            model_config,
            model_dtype(model_config, tensors),
            path=store.path / "config.json",
            tensors=tensors_about(len(tensors), sum(bank.num_experts for bank in store.banks.values())),
        )
        lossy = lossy_scheme(facts.dense_scheme)
        names = {} if lossy is None else linear_names(tensors, lossy)
        pairs = {name: (tensors[codes], tensors[scales]) for name, (codes, scales) in names.items()}
        parts = {info.name for pair in pairs.values() for info in pair}
        quantisation = load_quantisation(store.path)
        folded = fold_names(quantisation, {name: info.dtype for name, info in tensors.items() if name not in parts})
        component = facts.model.component
        keymap = map_dense(skeleton, [*folded.names, *pairs], component=component)
        unfold_keymap(keymap, folded, quantisation)
        keymap.ignored = list(facts.ignored)
        check_architecture(skeleton, len(keymap.banks))
        _check_dense(store, skeleton, keymap, tensors, parts)
        banks = {bank.key: bank for bank in keymap.banks}
        if keymap.unclaimed or banks.keys() != store.banks.keys():
            odd = keymap.unclaimed[:1] or sorted(map(str, banks.keys() ^ store.banks.keys()))
            raise LoadError(
                f"{store.path} holds a {facts.model.class_name}, which has no place for {odd[0]!r}.",
                advice="Install the release of transformers that the store was made with, or extract it again.",
                path=store.path,
            )
        return cls(
            location=Location(directory=store.path, name=facts.source.name, revision=facts.source.revision),
            config=config,
            component=component,
            skeleton=skeleton,
            keymap=keymap,
            tensors=tensors,
            quantisation=quantisation,
            banks={key: _bank(bank, store.banks[key], store) for key, bank in banks.items()},
            store=store,
            pairs=pairs,
        )

    @property
    def identity(self) -> str:
        """Fingerprint of the model, which the manifest has."""
        return self.store.manifest.model.identity

    @property
    def integrity(self) -> str:
        """Fingerprint of the checkpoint that the store was made from."""
        return self.store.manifest.source.integrity

    @property
    def model_type(self) -> str:
        """``model_type`` as the manifest has it."""
        return self.store.manifest.model.model_type

    def names_of(self, key: ExpertKey) -> list[str]:
        """None: experts are records of their own."""
        return []

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

    def checksum(self, key: ExpertKey) -> str | None:
        """That of the record."""
        return self.store.checksum(key)


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


def _bank(bank: ExpertBank, facts: Bank, store: Store) -> CheckpointBank:
    """The bank with the layout that its experts have in the checkpoint; where none tells, that of the model's dtype."""
    records = sorted(facts.records.values(), key=lambda record: record.scheme != NATIVE)
    layout = (
        store.manifest.layouts[records[0].layout]
        if records
        else bank.layout({name: SAFETENSORS_DTYPES[dtype] for name, dtype in bank.dtypes.items()})
    )
    return CheckpointBank(bank=bank, fields={}, layout=layout)


def stored_scheme(checkpoint: Checkpoint, key: ExpertKey) -> str:
    """The scheme in which an expert lies in a checkpoint or store."""
    return checkpoint.store.scheme(key) if isinstance(checkpoint, StoreOrigin) else NATIVE


def dense_scheme_of(checkpoint: Checkpoint) -> str:
    """The scheme in which linear layers outside experts lie in a checkpoint or store."""
    return checkpoint.store.manifest.dense_scheme if isinstance(checkpoint, StoreOrigin) else NATIVE


def made_from(checkpoint: Checkpoint) -> str:
    """What a store that is made of this one differs by from one made of the checkpoint; empty if by nothing."""
    if not isinstance(checkpoint, StoreOrigin) or not is_lossy(checkpoint.store):
        return ""
    return str(xxhash.xxh3_128_hexdigest(manifest_bytes(checkpoint.store.manifest)))


def is_lossy(store: Store) -> bool:
    """Whether anything of a store is in a lossy scheme."""
    schemes = {record.scheme for bank in store.manifest.banks for record in bank.records.values()}
    return bool({*schemes, store.manifest.dense_scheme} - {NATIVE})


def bank_sources(checkpoint: Checkpoint, key: BankKey) -> tuple[str, ...] | None:
    """The checkpoint keys of a bank as a manifest has them; None for a checkpoint itself."""
    return checkpoint.store.banks[key].sources if isinstance(checkpoint, StoreOrigin) else None


def files_beside(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files beside the weights that a store keeps, by their relative name there.

    Raises:
        CheckpointFileError: If the directory cannot be listed.
    """
    if isinstance(checkpoint, StoreOrigin):
        return {facts.file: checkpoint.store.path / facts.file for facts in checkpoint.store.manifest.files}
    return side_files(checkpoint.location.directory)


def files_changed(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Those of :func:`files_beside` that a store has with another content, which is given.

    Raises:
        CheckpointFileError: If the configuration cannot be read.
    """
    if isinstance(checkpoint, StoreOrigin):
        return {}
    config = with_dtype(read_config(checkpoint.location.directory), lambda: checkpoint.unstated_dtype)
    return {} if config is None else {"config.json": config}


def tensors_about(dense: int, experts: int) -> int:
    """About how many tensors a model was saved as that has so many tensors outside experts, and experts."""
    return dense + _TENSORS_PER_EXPERT * experts


def check_smaller(what: str, have: str, want: str) -> None:
    """Refuses a scheme that has more bits than what there is: it would be larger, and no better.

    Raises:
        UsageError: With both.
    """
    for scheme in (have, want):
        if scheme not in _BY_SIZE:
            raise UsageError.unknown("scheme", scheme, list(_BY_SIZE))
    if _BY_SIZE.index(want) < _BY_SIZE.index(have):
        raise UsageError(
            f"{what} stored as {have}; as {want} they would be larger and no better.",
            advice="Make the store from the checkpoint, or from a store that is still native.",
            have=have,
            want=want,
        )
