"""One view of what can be opened: a store, a checkpoint directory, a Hub id, or ``bundled``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from coterie.checkpoint import (
    Checkpoint,
    LaterTensors,
    LazyTensor,
    TensorInfo,
    UnreadTensor,
    WholeFile,
    model_dtype,
    nothing_to_limit,
    unread_tensors,
)
from coterie.engine.fetching import FetchingExperts, open_origin
from coterie.engine.hub_experts import HubExperts
from coterie.engine.linears import StoredLinears
from coterie.errors import UsageError
from coterie.extraction.quantising import SchemedExperts
from coterie.hf.configs import (
    component_of_class,
    fill_known_gaps,
    has_talker,
    load_config,
    load_quantisation,
    resolve_model,
)
from coterie.hf.context import context_shape
from coterie.hf.parts import embedding_table, leaving
from coterie.origins.store_component import store_component
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_origin import tensors_about
from coterie.origins.store_place import StorePlace
from coterie.origins.stored_dense import checked_tensors, dense_headers
from coterie.records.remote import RateLimit
from coterie.spec import BankKey, ExpertSource, RecordLayout
from coterie.spec.footprint import READS_AT_ONCE, BankRecords, Footprint
from coterie.spec.parameters import uses_scheme
from coterie.store import Store
from coterie.store import names as store_names
from coterie.store.from_hub import is_snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A store or checkpoint, ready to be loaded.

    Attributes:
        kind: ``store`` or ``checkpoint``.
        name: For messages: directory name or Hub id.
        directory: Where configuration, tokenizer and processor files are.
        identity: Fingerprint of the model.
        model_class: transformers class.
        config: The part of the configuration that belongs to it.
        dtype: Dtype that the model computes in.
        experts: Where experts come from.
        num_experts: Bank → E.
        present: Bank → ids of the experts that are there.
        dense: Dense tensors by checkpoint name, unread; without those of ``linears``.
        tensors: How many tensors the whole model was saved as, about; they bound how many parts it may have.
        component: The component that the model is of a larger checkpoint, or None.
        linears: Weights of linear layers that are in a scheme, or None.
        fetching: ``experts`` again, if what is not here is fetched: from a partial store's checkpoint, or from the Hub.
        schemed: What ``experts`` come from, if they are quantised when they are read.
        buffered_reads: Records that memory is needed for while experts are read; None for what ``kind`` says.
        store: The store, if it is one.
        dense_files: Its files of dense tensors, which keep what is read until it is asked for.
    """

    kind: Literal["store", "checkpoint"]
    name: str
    directory: Path
    identity: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    dtype: torch.dtype
    experts: ExpertSource
    num_experts: Mapping[BankKey, int]
    present: Mapping[BankKey, frozenset[int]]
    dense: Mapping[str, UnreadTensor]
    tensors: int
    component: str | None = None
    linears: StoredLinears | None = None
    fetching: FetchingExperts | HubExperts | None = None
    schemed: SchemedExperts | None = None
    buffered_reads: int | None = None
    store: Store | None = None
    dense_files: tuple[WholeFile, ...] = ()

    @cached_property
    def record_nbytes(self) -> Mapping[BankKey, int]:
        """Bytes of one record of each bank that has any expert here."""
        sizes: dict[BankKey, int] = {}
        for key in self.experts.keys():
            sizes.setdefault(key.bank_key, self.experts.layout(key).nbytes)
        return sizes

    @cached_property
    def footprint(self) -> Footprint:
        """What it takes in memory."""
        layouts: dict[BankKey, Counter[RecordLayout]] = {bank: Counter() for bank in self.num_experts}
        for key in self.experts.keys():
            layouts[key.bank_key][self.experts.layout(key)] += 1
        parts, table = leaving(self._as_stored, self.config)
        return Footprint.of(
            {
                bank: BankRecords(layouts=found, absent=self.num_experts[bank] - len(self.present[bank]))
                for bank, found in layouts.items()
            },
            dense=sum(tensor.nbytes for tensor in self.dense.values()) + (self.linears.nbytes if self.linears else 0),
            parts=parts,
            table=table,
            shape=context_shape(self.config, self.dtype, self.model_class),
            buffered_reads=self._buffered_reads,
        )

    def fingerprint(self, *, fetched: bool = False) -> str:
        """Hex digits that differ if what it computes may.

        They are of a store's manifest, which has all checksums, or of a checkpoint. An
        :class:`~coterie.engine.alteration.Alteration` has a fingerprint of its own, beside that of its model.

        Args:
            fetched: Whether a store is fetched into. Then it changes, and what it computes does not: it counts as the
                checkpoint that it came from.
        """
        if isinstance(self.experts, Checkpoint):
            return self.experts.integrity
        if fetched and self.store is not None and not is_snapshot(self.store.path):
            return self.store.manifest.source.integrity
        return sha256((self.directory / store_names.MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def table(self) -> str | None:
        """The table of embeddings whose rows can be read when they are asked for, by checkpoint name; None if none."""
        return embedding_table(self._as_stored, self.config)

    @property
    def encoded(self) -> tuple[TensorInfo, ...]:
        """Codes and scales of the linear layers that are in a scheme."""
        return () if self.linears is None else tuple(i for one in self.linears.weights.values() for i in one.tensors)

    @property
    def _as_stored(self) -> dict[str, LazyTensor | TensorInfo]:
        """Dense tensors that lie in memory as they are stored, by name."""
        found: dict[str, LazyTensor | TensorInfo] = {
            name: tensor
            for name, tensor in self.dense.items()
            if isinstance(tensor, LazyTensor) and tensor.dtype == self.dtype
        }
        return found | {info.name: info for info in self.encoded}

    @property
    def _buffered_reads(self) -> int:
        """Reading a store takes no buffers; a checkpoint's experts may be decoded, and growing a store is one more."""
        if self.buffered_reads is not None:
            return self.buffered_reads
        if self.fetching is not None:
            return READS_AT_ONCE + 1
        return 0 if self.kind == "store" else READS_AT_ONCE

    @property
    def quantised(self) -> bool:
        """Whether any weight is in one of our lossy schemes."""
        layouts = {self.experts.layout(key) for key in self.experts.keys()}
        return self.linears is not None or any(uses_scheme(one) for one in layouts)

    def finish_loading(self) -> None:
        """To be called when the dense part is loaded: lets go of what nobody asked for, and looks at the files again.

        Raises:
            ReadError: If a file of the store was replaced or written to meanwhile.
        """
        for file in self.dense_files:
            file.let_go()
        if self.store is not None:
            self.store.check_unchanged()

    def close(self) -> None:
        """Closes what it has opened beside the cache; adds what was fetched to the store. Harmless when repeated."""
        for experts in (self.fetching, self.schemed):
            if experts is not None:
                experts.close()

    @property
    def complete(self) -> bool:
        """Whether every expert is there."""
        return all(len(ids) == self.num_experts[bank] for bank, ids in self.present.items())


def open_source(
    path: str | Path,
    *,
    component: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    fetch: bool = False,
    max_rate: str | int | None = None,
) -> ModelSource:
    """Opens a store, a checkpoint directory, a Hub id, or ``bundled``. Reads no expert.

    Args:
        path: What to open.
        component: ``thinker`` or ``talker`` of a whole model.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        fetch: Of a store on the Hub, leave experts there until they are asked for.
        max_rate: Most bytes in a second that are read over the network, such as ``"20MB/s"``.

    Raises:
        CheckpointError, StoreError, UnsupportedError: As their packages say.
        UsageError: If the component is not in the store or model, or a rate is given where nothing is fetched.
    """
    found = find_model(path, revision=revision, offline=offline, rate=RateLimit.of(max_rate))
    if max_rate is not None and found.repository is None and not fetch:
        raise nothing_to_limit(path)
    if isinstance(found, StorePlace):
        return _store_source(found, component, fetch=fetch)
    return _checkpoint_source(Checkpoint.open(found, component=component))


def with_fetching(
    partial: ModelSource, source: str | Path | None, *, offline: bool = False, max_rate: str | int | None = None
) -> ModelSource:
    """The whole model: what a partial store lacks comes from its checkpoint, and is added to the store.

    Args:
        partial: From :func:`open_source`. One that is complete stays what it is, and needs no checkpoint.
        source: Its checkpoint: directory, Hub id or ``bundled``; None for what the store's manifest names.
        offline: Use only what is on this machine.
        max_rate: As of :func:`open_source`.

    Raises:
        UsageError: If the checkpoint has to be named, or is a directory, of which no rate can be limited.
        LoadError: If it is not the one that the store was made from.
        CheckpointError: If it cannot be used.
    """
    store = partial.store
    if partial.complete or store is None:
        return partial
    if is_snapshot(store.path):
        raise UsageError(
            f"{partial.name} lacks experts, and a store in the Hub's cache does not grow.",
            advice="Run `hf download ID --local-dir DIR` and open DIR with --missing fetch, or choose another.",
            path=store.path,
        )
    origin = open_origin(store, source, offline=offline, rate=RateLimit.of(max_rate))
    experts = FetchingExperts(store, origin, partial.num_experts.keys())
    return replace(
        partial,
        experts=experts,
        present=_ids_by_bank(experts, partial.num_experts),
        fetching=experts,
    )


def text_component(
    path: str | Path, *, revision: str | None = None, offline: bool = False, max_rate: str | int | None = None
) -> str | None:
    """The component to open where only text is wanted: ``thinker`` of a whole omni model, else None (all of it).

    Raises:
        CheckpointError, StoreError, UnsupportedError: As :func:`open_source`.
    """
    found = find_model(path, revision=revision, offline=offline, rate=RateLimit.of(max_rate))
    if isinstance(found, StorePlace) and found.look().manifest.model.component is not None:
        return None
    config = load_config(found.directory)
    whole, _ = resolve_model(config, None)
    return "thinker" if has_talker(config) and component_of_class(whole, config) == "text" else None


def model_directory(path: str | Path, *, revision: str | None = None, offline: bool = False) -> Path:
    """Where a model's configuration and tokenizer are. Of a Hub id the small files are downloaded, and no weights.

    Raises:
        CheckpointError, StoreError, UnsupportedError, UsageError: As :func:`open_source`.
    """
    found = find_model(path, revision=revision, offline=offline)
    return found.look().path if isinstance(found, StorePlace) else found.directory


def _checkpoint_source(checkpoint: Checkpoint) -> ModelSource:
    checkpoint.warn_left_out()
    unused = {*checkpoint.keymap.outside, *checkpoint.keymap.ignored}
    checkpoint.download(name for name in checkpoint.tensors if name not in unused)
    fill_known_gaps(checkpoint.skeleton.config)
    return ModelSource(
        kind="checkpoint",
        name=checkpoint.location.name,
        directory=checkpoint.location.directory,
        identity=checkpoint.identity,
        model_class=type(checkpoint.skeleton),
        config=checkpoint.skeleton.config,
        dtype=checkpoint.dtype,
        experts=checkpoint,
        num_experts={key: bank.bank.num_experts for key, bank in checkpoint.banks.items()},
        present={key: frozenset(range(bank.bank.num_experts)) for key, bank in checkpoint.banks.items()},
        dense=_to_be_postponed(checkpoint.dense_state_dict()),
        tensors=len(checkpoint.tensors),
        component=checkpoint.component,
    )


def _to_be_postponed(dense: Mapping[str, UnreadTensor]) -> dict[str, UnreadTensor]:
    """Tensors of a checkpoint, with somebody who can put their reading off."""
    later = LaterTensors()
    return {
        name: LazyTensor(replace(tensor.info, keeper=later)) if isinstance(tensor, LazyTensor) else tensor
        for name, tensor in dense.items()
    }


def _store_source(place: StorePlace, component: str | None, *, fetch: bool) -> ModelSource:
    store = place.open(experts=not fetch)
    part = store_component(store, component)
    fetching = HubExperts(place, store, part.experts) if place.repository is not None and fetch else None
    fill_known_gaps(part.config)
    headers = dense_headers(store)
    tensors, dense_files = checked_tensors(store, headers, lambda name: name.startswith(part.prefix))
    dtype = model_dtype(part.config, tensors)
    linears = StoredLinears.of(tensors, store.manifest.dense_schemes, part.name)
    if linears is not None:
        tensors = {name: info for name, info in tensors.items() if name not in linears.stored_names}
    return ModelSource(
        kind="store",
        name=place.name,
        directory=store.path,
        identity=store.manifest.model.identity,
        model_class=part.model_class,
        config=part.config,
        dtype=dtype,
        experts=fetching or part.experts,
        fetching=fetching,
        num_experts=part.banks,
        present=_ids_by_bank(part.experts, part.banks),
        dense=unread_tensors(tensors, load_quantisation(store.path), dtype),
        tensors=tensors_about(len(tensors), sum(part.banks.values())),
        component=part.name,
        linears=linears,
        store=store,
        dense_files=dense_files,
    )


def _ids_by_bank(experts: ExpertSource, banks: Iterable[BankKey]) -> dict[BankKey, frozenset[int]]:
    """The ids that a source has of each of these banks; those of others are left out."""
    ids: dict[BankKey, set[int]] = {bank: set() for bank in banks}
    for key in experts.keys():
        if key.bank_key in ids:
            ids[key.bank_key].add(key.expert)
    return {bank: frozenset(found) for bank, found in ids.items()}
