"""A Hugging Face checkpoint, every tensor claimed, read lazily."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash

from coterie.checkpoint.dense import UnreadTensor, unread_tensors
from coterie.checkpoint.dtype import checkpoint_dtype
from coterie.checkpoint.fingerprints import Router, content_of, model_identity, router_names, samples_of
from coterie.checkpoint.formats import ADAPTER
from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.checkpoint.location import Location
from coterie.checkpoint.packed import PackedWeight, RoundedSoFar, UnpackedTensor
from coterie.checkpoint.packed_bank import PackedBank
from coterie.checkpoint.reading import read_tensor
from coterie.checkpoint.weight_files import WeightFiles
from coterie.errors import CheckpointFileError, TensorMissingError, UnclaimedTensorError
from coterie.files.safetensors_header import element_count
from coterie.hf.banks import ExpertBank
from coterie.hf.configs import check_architecture, config_dtype, load_config, load_quantisation, resolve_model
from coterie.hf.decoding import ReadTensor, decode_field, is_plain
from coterie.hf.foreign import foreign
from coterie.hf.keymap import FieldSource, KeyMap, map_keys
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised import FoldedNames, fold_names, fold_packed, record_fields, record_layout, unfold_keymap
from coterie.hf.shapes import check_shapes
from coterie.hf.skeleton import build_skeleton
from coterie.quant.dtypes import SAFETENSORS_DTYPES, TORCH_DTYPES
from coterie.records.remote import RangeReader, expecting
from coterie.records.remote.ahead import Range
from coterie.spec import BankKey, ByteSource, ExpertKey, Extent, Field, RecordLayout
from coterie.spec.encodings import NATIVE
from coterie.spec.layout import numbered
from coterie.spec.parameters import encoded_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(slots=True, kw_only=True)
class CheckpointBank:
    """One bank of experts in a checkpoint.

    Attributes:
        bank: The bank in the model.
        fields: Field name → where it comes from; a parameter's own name where it is not quantised.
        layout: Record layout of its experts in the checkpoint's own dtype, or in the model's where tensors differ.
        mixed: Fields whose tensors have several dtypes, and are converted as they are read.
        packed: The parameters among ``fields`` whose weights are packed, and what they become; None if there are none.
    """

    bank: ExpertBank
    fields: dict[str, FieldSource]
    layout: RecordLayout
    mixed: frozenset[str] = frozenset()
    packed: PackedBank | None = None

    @property
    def scheme(self) -> str:
        """The scheme of its experts: that which takes packed weights as they are, else native."""
        return NATIVE if self.packed is None else self.packed.scheme


@dataclass(kw_only=True)
class Checkpoint:
    """A checkpoint whose every tensor is claimed; an :class:`~coterie.spec.ExpertSource` of its experts.

    Attributes:
        location: Its files.
        config: The whole configuration.
        component: The component that was asked for, or None for the model as it is.
        skeleton: The model on the meta device.
        keymap: The claims.
        tensors: Every tensor by name.
        quantisation: How its weights are quantised, or None.
        files: Which files are its weights.
        banks: Banks by key.
        packed: Weights that are packed, by the names that they would have if they were not quantised. ``keymap`` has
            these names, ``tensors`` the stored ones.
        rounded: What was rounded of packed weights that were read into schemes.
    """

    location: Location
    config: PreTrainedConfig
    component: str | None
    skeleton: PreTrainedModel
    keymap: KeyMap
    tensors: Mapping[str, TensorInfo]
    quantisation: Quantisation | None = None
    files: WeightFiles | None = None
    banks: dict[BankKey, CheckpointBank] = field(default_factory=dict)
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)
    rounded: RoundedSoFar = field(default_factory=RoundedSoFar)
    # What was found once is asked for with every read.
    _extents: dict[ExpertKey, tuple[Extent, ...] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _sources: dict[Path, ByteSource] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path_or_id: str | Path | Location,
        *,
        component: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        reader: RangeReader | None = None,
    ) -> Checkpoint:
        """Opens a checkpoint and claims every tensor. Reads headers only.

        Args:
            path_or_id: Directory, or Hub id; or what was found under it, of which revision and offline are known.
            component: ``thinker`` or ``talker`` of a whole model; None for the model as it is.
            revision: Branch, tag or commit of a Hub repository.
            offline: Use only what is on this machine.
            reader: Reads what is asked for of shards that are only on the Hub, by ranges, and nothing is downloaded;
                None to have shards downloaded to the Hub's cache.

        Raises:
            CheckpointError: If it is not complete and consistent (the message names the tensor or file).
            UnsupportedError: If the architecture or quantisation is not supported.
        """
        location = (
            path_or_id
            if isinstance(path_or_id, Location)
            else Location.find(path_or_id, revision=revision, offline=offline, reader=reader)
        )
        location.refuse_store()
        config = load_config(location.directory)
        model_class, model_config = resolve_model(config, component)
        quantisation = load_quantisation(location.directory)
        files = location.weight_files(getattr(model_config, "transformers_weights", None))
        tensors = location.tensors(files)
        path = location.directory / "config.json"
        dtype = config_dtype(model_config) or checkpoint_dtype(location, files, tensors)
        skeleton = build_skeleton(model_class, model_config, dtype, path=path, tensors=len(tensors))
        folded = _fold(quantisation, tensors)
        rounded = RoundedSoFar()
        with foreign("The model", path, error=CheckpointFileError):
            keymap = map_keys(skeleton, folded.names, component=component)
        unfold_keymap(keymap, folded, quantisation)
        check_architecture(skeleton, len(keymap.banks))
        _check_claims(keymap, location)
        self = cls(
            location=location,
            config=config,
            component=component,
            skeleton=skeleton,
            keymap=keymap,
            tensors=tensors,
            quantisation=quantisation,
            files=files,
            packed={
                name: PackedWeight(name=name, names=names, tensors=tensors, rounded=rounded)
                for name, names in folded.packed.items()
            },
            rounded=rounded,
        )
        self._add_banks()
        dense = self.unread_dense()
        check_shapes(skeleton, keymap, {name: tensor.shape for name, tensor in dense.items()}, path)
        return self

    def warn_left_out(self) -> None:
        """Warns of what is beside the model and has no part in what it computes: tensors of other parts, an adapter."""
        names = self.keymap.left_out
        if (self.location.directory / ADAPTER).exists():
            warnings.warn(
                f"{self.location.name} has an adapter beside the model ({ADAPTER}), which is not applied. Merge it "
                "into the weights with peft if it is meant.",
                stacklevel=2,
            )
        if names:
            warnings.warn(
                f"{self.location.name} has {len(names)} tensors of parts that its configuration does not describe, "
                f"such as {names[0]!r}. They are left out, as transformers leaves them out.",
                stacklevel=2,
            )

    @property
    def model_type(self) -> str:
        """``model_type`` of the configuration; made up like those of other components for a talker, which has none."""
        own: str | None = self.skeleton.config.model_type
        return own or f"{self.config.model_type}_{self.component}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        dtype: torch.dtype = self.skeleton.dtype
        return dtype

    @property
    def unstated_dtype(self) -> torch.dtype:
        """The dtype that the weights give a part whose configuration states none.

        Raises:
            CheckpointFileError: If their index states something else than a dtype.
        """
        if self.files is None:
            return self.dtype
        return checkpoint_dtype(self.location, self.files, self.tensors)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of everything that is not an expert, as stored."""
        return sum(self.tensors[name].nbytes for name in self.stored_names(self.keymap.dense))

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """The tensors that hold weights of these names, without repetition: several of one that is packed."""
        found = (
            self.packed[name].names.names.values() if name in self.packed else (name,) for name in dict.fromkeys(names)
        )
        return list(dict.fromkeys(stored for group in found for stored in group))

    @property
    def tensors_in_use(self) -> tuple[TensorInfo, ...]:
        """Those that have a part in the model; not those that transformers ignores, nor of other components."""
        left_out = {*self.keymap.ignored, *self.keymap.outside}
        return tuple(info for name, info in self.tensors.items() if name not in left_out)

    @cached_property
    def reader(self) -> RangeReader | None:
        """Who reads tensors by ranges that are only on a server; None if all are, or will be, in files here."""
        return self.location.reader if any(info.remote is not None for info in self.tensors.values()) else None

    def to_download(self, names: Iterable[str]) -> set[Path]:
        """The files with those of these tensors that are not read by ranges."""
        return {one.path for one in map(self.tensors.__getitem__, self.stored_names(names)) if one.remote is None}

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """Where on a server the bytes of these tensors are, in this order; nothing of those that are in files here."""
        stored = map(self.tensors.__getitem__, self.stored_names(names))
        return [(info.remote, info.offset, info.nbytes) for info in stored if info.remote is not None]

    def download(self, names: Iterable[str]) -> None:
        """Makes the shards with these tensors, or packed weights, local; not those that are read by ranges.

        Raises:
            CheckpointFileError: If one cannot be had, or has another header than the one that was read so far, which
                came without a checksum.
            DiskSpaceError: If the disk of the Hub's cache has no room.
        """
        paths = self.to_download(names)
        missing = self.location.missing_shards(paths)
        if not missing:
            return
        self.location.download(paths)
        for path in missing:
            header = read_header(path)
            if any(header.get(name) != info for name, info in self.tensors.items() if info.path == path):
                raise CheckpointFileError(
                    f"{path.name} has another header than the one that was read before it was downloaded.",
                    advice="Something on the way changes what is sent. Run the command again: the file is here now.",
                    path=path,
                )

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Reads one tensor into fresh aligned memory; with ``index``, only that entry of the first dimension, kept."""
        return read_tensor(self.tensors[name], index)

    @property
    def dense_memory_nbytes(self) -> int:
        """Bytes of everything that is not an expert once it is loaded: what is quantised is dequantised then."""
        return sum(tensor.nbytes for tensor in self.unread_dense().values())

    def dense_state_dict(self) -> dict[str, UnreadTensor]:
        """The dense tensors by checkpoint name, each read, and dequantised, when it is indexed."""
        self.download(self.keymap.dense)
        return self.unread_dense()

    def unread_dense(self) -> dict[str, UnreadTensor]:
        """The same without a download: their dtypes and shapes are known, and reading one needs its file to be here."""
        plain = {name: self.tensors[name] for name in self.keymap.dense if name not in self.packed}
        packed = (self.packed[name] for name in self.keymap.dense if name in self.packed)
        found = unread_tensors(plain, self.quantisation, self.dtype)
        return found | {weight.name: UnpackedTensor(weight, self.dtype) for weight in packed}

    def names_of(self, key: ExpertKey) -> list[str]:
        """The checkpoint tensors that hold an expert."""
        bank = self.banks[key.bank_key]
        return self.stored_names(name for source in bank.fields.values() for name in source.names_of(key.expert))

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """All experts of the model."""
        return [key.expert(e) for key, bank in self.banks.items() for e in range(bank.bank.num_experts)]

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record in the checkpoint's own dtype."""
        return self.banks[key.bank_key].layout

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the expert's bytes lie, or None if transformers transposes or interleaves them on loading."""
        if key not in self._extents:
            self._extents[key] = self._find(key)
        return self._extents[key]

    def _find(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        bank = self.banks[key.bank_key]
        if bank.packed is not None:
            return None
        found: list[Extent] = []
        for place in bank.layout.fields:
            source = bank.fields[place.name]
            if not is_plain(source) or place.name in bank.mixed:
                return None
            at = place.offset
            for name in source.names_of(key.expert):
                info = self.tensors[name]
                size = info.nbytes if source.per_expert else info.nbytes // bank.bank.num_experts
                start = info.offset if source.per_expert else info.offset + key.expert * size
                # One object for all of a file: there are many experts.
                where = self._sources.get(info.path) or self._sources.setdefault(info.path, info.source)
                found.append(Extent(source=where, offset=start, nbytes=size, at=at))
                at += size
        return tuple(found)

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Decodes an expert with transformers' own operations into ``record``; returns the bytes read."""
        bank = self.banks[key.bank_key]
        read = 0
        if bank.packed is not None:
            bank.packed.read_into(key.expert, bank.layout, record)
        for place in bank.layout.fields:
            if place.name not in bank.fields:
                read += place.nbytes  # of a packed parameter, which is there already
                continue
            source = bank.fields[place.name]
            expected = (place.shape, TORCH_DTYPES[place.dtype])
            read_one = self._reader_as(expected[1]) if place.name in bank.mixed else self.read
            tensor = decode_field(source, key.expert, read_one, self.skeleton)
            if (tuple(tensor.shape), tensor.dtype) != expected:
                raise CheckpointFileError(
                    f"Expert {key.expert} of {source.target} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                    f"the model needs {expected[0]} and {expected[1]}.",
                    advice="config.json and the weights do not belong together.",
                    tensor=source.target,
                    expected=expected[0],
                    got=tuple(tensor.shape),
                )
            view = tensor.view(-1).view(torch.uint8).numpy()
            record[place.offset : place.offset + place.nbytes] = view.data
            read += place.nbytes
        return read

    def checksum(self, key: ExpertKey) -> str | None:
        """None: checkpoints carry no checksums."""
        return None

    # --- fingerprints -------------------------------------------------------------------------------------------

    @cached_property
    def integrity(self) -> str:
        """Fingerprint of the source as 32 hex digits: configuration, headers, routers, and what fixes the rest.

        That is the commit for a repository of the Hub, of which not all shards need be here, and samples of every
        shard for a directory.
        """
        return self.integrity_given(self.identity)

    def integrity_given(self, identity: str) -> str:
        """:attr:`integrity` if the model had this identity.

        For a repository of the Hub that proves as much, since the commit fixes the routers, and reads no tensor.
        """
        digest = xxhash.xxh3_128(content_of(self.location.directory / "config.json"))
        for name, info in sorted(self.tensors.items()):
            digest.update(f"{name} {info.dtype} {info.shape} {info.path.name}\n".encode())
        if self.location.repo_id is not None:
            digest.update(f"{self.location.repo_id} {self.location.revision}\n".encode())
        else:
            for path in sorted({info.path for info in self.tensors.values()}):
                digest.update(samples_of(path))
        digest.update(identity.encode())
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the model: its class and its routers' bytes, the same for every store of it."""
        names = self.router_names()
        every = [name for _, found in sorted(names.items()) for name in found]
        self.download(every)
        routers = ((key, map(self._router, found)) for key, found in sorted(names.items()))
        with expecting(self, every):
            return model_identity(type(self.skeleton).__name__, routers)

    def _router(self, name: str) -> Router:
        tensor = self.packed[name].weights(self.dtype) if name in self.packed else self.read(name)
        return self.keymap.dense[name], tuple(tensor.shape), tensor.view(-1).view(torch.uint8).numpy().data

    def router_names(self) -> dict[BankKey, list[str]]:
        """The dense tensors of each bank's router: those beside the experts that have one row per expert."""
        shapes = {name: info.shape for name, info in self.tensors.items()}
        shapes |= {name: weight.shape for name, weight in self.packed.items()}
        return router_names((bank.bank for bank in self.banks.values()), self.keymap.dense, shapes)

    def _add_banks(self) -> None:
        shapes = {name: info.shape for name, info in self.tensors.items()}
        for bank in self.keymap.banks:
            fields = self.keymap.experts.get(bank.key, {})
            absent = sorted(p for p in bank.parameters if not {p, *encoded_names(p)} & fields.keys())
            if absent:
                raise TensorMissingError(
                    f"The checkpoint lacks {bank.path}.{absent[0]}.",
                    advice="Download the checkpoint again.",
                    tensor=f"{bank.path}.{absent[0]}",
                )
            packed = PackedBank.of(bank, fields, self.packed)
            plain = fields if packed is None else {name: fields[name] for name in fields if name not in packed.sources}
            found = {name: self._dtypes_of(source) for name, source in plain.items()}
            mixed = frozenset(name for name, dtypes in found.items() if len(dtypes) > 1)
            dtypes = {
                name: self._common_dtype(bank, name, fields[name], of) if name in mixed else of.copy().pop()
                for name, of in found.items()
            }
            layout = (
                record_layout(bank, record_fields(bank, fields, shapes, dtypes))
                if packed is None
                else packed.layout(dtypes)
            )
            self.banks[bank.key] = CheckpointBank(bank=bank, fields=fields, layout=layout, mixed=mixed, packed=packed)
            for place in layout.fields:
                if place.name in plain:
                    self._check_sizes(plain[place.name], bank, place)
        packed_layouts = {key: bank.layout for key, bank in self.banks.items() if bank.packed is not None}
        for key, layout in numbered(packed_layouts).items():
            self.banks[key].layout = layout

    def _dtypes_of(self, source: FieldSource) -> set[str]:
        return {self.tensors[name].dtype for names in source.names.values() for name in names}

    def _common_dtype(self, bank: ExpertBank, name: str, source: FieldSource, dtypes: set[str]) -> str:
        """The model's dtype, to which transformers converts each tensor before it puts experts together."""
        model_dtype = bank.dtypes.get(name)
        if model_dtype is not None and all(TORCH_DTYPES[dtype].is_floating_point for dtype in dtypes):
            return SAFETENSORS_DTYPES[model_dtype]
        raise CheckpointFileError(
            f"The tensors of {source.target} have different dtypes: {', '.join(sorted(dtypes))}.",
            advice="Save the checkpoint in one dtype.",
            tensor=source.target,
        )

    def _reader_as(self, dtype: torch.dtype) -> ReadTensor:
        return lambda name, index: self.read(name, index).to(dtype)

    def _check_sizes(self, source: FieldSource, bank: ExpertBank, place: Field) -> None:
        """Compares what the headers say with what the model needs; what is converted is compared once more when read.

        Where bytes are used as they lie, their number is not enough: a transposed tensor has as many.
        """
        stack = () if source.per_expert else (bank.num_experts,)
        for expert in range(bank.num_experts if source.per_expert else 1):
            names = source.names_of(expert)
            shapes = [source.stacked_shape(self.tensors[name].shape) for name in names]
            fits = sum(element_count(shape) for shape in shapes) == prod(place.shape) * prod(stack)
            if fits and is_plain(source) and len(shapes[0]) > 1:
                rows = len(stack) + 1
                fits = all(len(shape) == len(stack + place.shape) for shape in shapes) and all(
                    shape[: rows - 1] == stack and shape[rows:] == place.shape[1:] for shape in shapes
                )
            if not fits:
                raise CheckpointFileError(
                    f"{' and '.join(f'{n} {s}' for n, s in zip(names, shapes, strict=True))} do not fit "
                    f"{source.target}: the model needs {(*stack, *place.shape)}.",
                    advice="config.json and the weights do not belong together.",
                    tensor=names[0],
                    expected=(*stack, *place.shape),
                    got=shapes[0] if len(shapes) == 1 else tuple(shapes),
                )


def _fold(quantisation: Quantisation | None, tensors: Mapping[str, TensorInfo]) -> FoldedNames:
    dtypes = {name: info.dtype for name, info in tensors.items()}
    if quantisation is None or quantisation.packings is None:
        return fold_names(quantisation, dtypes)
    return fold_packed(quantisation.packings, dtypes, {name: info.shape for name, info in tensors.items()})


def _check_claims(keymap: KeyMap, location: Location) -> None:
    if keymap.missing:
        raise TensorMissingError(
            f"The checkpoint lacks {keymap.missing[0]!r}"
            + (f" and {len(keymap.missing) - 1} more tensors." if len(keymap.missing) > 1 else "."),
            advice="Download the checkpoint again; a model is never filled up with random weights.",
            tensor=keymap.missing[0],
            missing=keymap.missing,
            path=location.directory,
        )
    if keymap.unclaimed:
        raise UnclaimedTensorError(
            f"The checkpoint has a tensor {keymap.unclaimed[0]!r} that belongs to nothing in the model"
            + (f", and {len(keymap.unclaimed) - 1} more." if len(keymap.unclaimed) > 1 else "."),
            advice="config.json and the weights do not belong together, or transformers is too old for this model.",
            tensor=keymap.unclaimed[0],
            unclaimed=keymap.unclaimed,
            path=location.directory,
        )
