"""What a store is made of: the contract between whoever has a model's bytes and whoever makes something of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from coterie.checkpoint import PackedWeight, TensorInfo
from coterie.hf.banks import ExpertBank
from coterie.hf.keymap import KeyMap
from coterie.hf.quantisation import Quantisation
from coterie.origins.cut import Cut
from coterie.origins.packed_dense import PackedDense
from coterie.origins.stored_dense import StoredLinear
from coterie.quant.packed import Rounded
from coterie.records.remote import RangeReader
from coterie.records.remote.ahead import Range
from coterie.spec import BankKey, ExpertKey, ExpertSource, RecordLayout
from coterie.spec.dense_schemes import DenseSchemes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from coterie.store import AllocationFacts, CalibrationFacts, RecordErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginBank:
    """One bank of experts.

    Attributes:
        bank: The bank in the model.
        layout: Record layout of its experts as the checkpoint has them.
    """

    bank: ExpertBank
    layout: RecordLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginModel:
    """Which model it is.

    Attributes:
        name: Name of the checkpoint.
        revision: Commit of the Hub repository, or None.
        component: The component that was asked for, or None for the model as it is.
        model_type: ``model_type`` of its configuration.
        config: The whole configuration.
        skeleton: The model on the meta device.
        banks: Banks by key.
        keymap: Where in the model each tensor that is no expert has its place.
    """

    name: str
    revision: str | None
    component: str | None
    model_type: str
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    banks: Mapping[BankKey, OriginBank]
    keymap: KeyMap

    @property
    def class_name(self) -> str:
        """Transformers class."""
        return type(self.skeleton).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        dtype: torch.dtype = self.skeleton.dtype
        return dtype


class Origin(ExpertSource, Protocol):
    """A checkpoint, or a store in its place."""

    @property
    def model(self) -> OriginModel:
        """Which model it is."""
        ...

    @property
    def directory(self) -> Path:
        """Where its files are."""
        ...

    @property
    def identity(self) -> str:
        """Fingerprint of the model: the same for every store of it. May download the routers and read them."""
        ...

    @property
    def integrity(self) -> str:
        """Fingerprint of the checkpoint. Costs what :attr:`identity` does."""
        ...

    @property
    def made_from(self) -> str:
        """What a store that is made of this differs by from one made of the checkpoint; empty if by nothing."""
        ...

    def scheme(self, key: ExpertKey) -> str:
        """The scheme in which an expert lies here."""
        ...

    def errors(self, key: ExpertKey) -> RecordErrors | None:
        """What an expert's record is off by, if its codes were chosen by calibration."""
        ...

    @property
    def calibration(self) -> CalibrationFacts | None:
        """What codes were chosen by; None if those of no expert were."""
        ...

    @property
    def allocation(self) -> AllocationFacts | None:
        """What the schemes of all experts were allocated by; None if they were not."""
        ...

    def sources(self, bank: BankKey) -> tuple[str, ...]:
        """The checkpoint's tensors that a bank comes from, with ``*`` for the expert's number."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by name."""
        ...

    @property
    def cuts(self) -> Mapping[str, Cut]:
        """Which of :attr:`tensors` are taken in part only, and which part."""
        ...

    @property
    def dense_schemes(self) -> DenseSchemes:
        """The schemes in which linear layers outside experts lie here."""
        ...

    @property
    def linears(self) -> Mapping[str, StoredLinear]:
        """Weights of linear layers in a scheme, by name; their codes and scales are in :attr:`tensors`."""
        ...

    @property
    def packed(self) -> Mapping[str, PackedWeight]:
        """Packed weights by the names that they would have if they were not; their tensors are in :attr:`tensors`."""
        ...

    @property
    def packed_dense(self) -> PackedDense:
        """What becomes of those outside experts."""
        ...

    @property
    def rounded(self) -> Rounded:
        """What was rounded so far of packed weights that were read into schemes."""
        ...

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """The names in :attr:`tensors` of what holds these weights: several of one that is packed."""
        ...

    @property
    def quantisation(self) -> Quantisation | None:
        """How the checkpoint itself quantised its weights, or None."""
        ...

    def side_files(self) -> Mapping[str, Path]:
        """The files beside the weights that a store keeps as they are here, by their relative name there.

        Raises:
            CheckpointFileError: If the directory cannot be listed.
        """
        ...

    def changed_files(self) -> Mapping[str, bytes]:
        """Files that a store has with another content than here, or that are not here: name → content.

        Raises:
            CheckpointFileError: If the configuration cannot be read.
        """
        ...

    def names_of(self, key: ExpertKey) -> list[str]:
        """The tensors that hold an expert; none where experts are records of their own."""
        ...

    @property
    def cache(self) -> Path | None:
        """Where :meth:`download` puts files; None where everything is here."""
        ...

    def missing(self, names: Iterable[str]) -> Mapping[Path, int]:
        """The files with these tensors that are not here yet → what is still to come of each."""
        ...

    def download(self, names: Iterable[str]) -> None:
        """Makes the files with these tensors local.

        Raises:
            CheckpointFileError: If one cannot be had, or is another than was announced.
            DiskSpaceError: If there is no room for it.
        """
        ...

    @property
    def reader(self) -> RangeReader | None:
        """Who reads by ranges what is only on a server; None where everything is, or will be, in files here."""
        ...

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """Where on a server these tensors are, in this order; nothing of those that are in files here."""
        ...

    def warn_left_out(self) -> None:
        """Warns of what is beside the model and has no part in what it computes."""
        ...
