"""The tensors of packed weights under the names that the weights would have if they were not quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coterie.errors import TensorMissingError, UnsupportedError
from coterie.hf.packings import Packings
from coterie.hf.quantised.folded import FoldedNames, PackedNames
from coterie.spec.packing import Packing

Shape = tuple[int, ...]
_CODES = ("I32", "U32")
_STACKED = ".switch_mlp."
_PARTS_OF_STACKED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Parts of an expert, and what Mixtral calls them."""


def fold_packed(packings: Packings, dtypes: Mapping[str, str], shapes: Mapping[str, Shape]) -> FoldedNames:
    """Folds the names of a checkpoint.

    Args:
        packings: What its configuration says.
        dtypes: Name of every tensor → safetensors' name of its dtype.
        shapes: Name of every tensor → its shape.

    Raises:
        TensorMissingError: If a packed weight lacks a tensor.
        UnsupportedError: If its tensors are of no packing that the configuration states.
    """
    usual = packings.candidates[0]
    found: dict[str, PackedNames] = {}
    taken: set[str] = set()
    unused: list[str] = []
    for name, dtype in dtypes.items():
        stem = name.removesuffix(usual.required["codes"])
        # Of MLX the codes are called as a weight is that is not packed.
        if stem == name or (stem and stem[-1] != ".") or (packings.kind == "mlx" and dtype not in _CODES):
            continue
        names = _names(usual, stem, dtypes)
        _check_dtypes(usual, names, dtypes)
        taken.update(names.values())
        unused += (stem + end for end in usual.unused if stem + end in dtypes)
        for base, index in _bases(stem, shapes[name]):
            packing = _packing(packings, stem, names, shapes, stacked=index is not None)
            found[base] = PackedNames(names=names, packing=packing, index=index)
    plain = [name for name in dtypes if name not in taken and name not in set(unused)]
    return FoldedNames(names=[*plain, *found], packed=found, unused=unused)


def _names(packing: Packing, stem: str, dtypes: Mapping[str, str]) -> dict[str, str]:
    names = {role: stem + end for role, end in packing.required.items()}
    absent = next((name for name in names.values() if name not in dtypes), None)
    if absent is not None:
        raise TensorMissingError(
            f"The checkpoint lacks {absent!r}, without which {names['codes']!r} cannot be unpacked.",
            advice="Download the checkpoint again.",
            tensor=absent,
        )
    return names | {role: stem + end for role, end in packing.optional.items() if stem + end in dtypes}


def _check_dtypes(packing: Packing, names: Mapping[str, str], dtypes: Mapping[str, str]) -> None:
    for role, name in names.items():
        wanted = packing.dtypes(role)
        if dtypes[name] not in wanted:
            raise UnsupportedError(
                f"{name!r} is in {dtypes[name]}; packed weights have it in {' or '.join(wanted)}.",
                advice="Use the model's original bf16 checkpoint.",
                tensor=name,
                dtype=dtypes[name],
            )


def _bases(stem: str, codes: Shape) -> Iterator[tuple[str, int | None]]:
    """The names that weights would have: one, or that of each expert where all of a layer are in one tensor."""
    if len(codes) != 3:
        yield f"{stem}weight", None
        return
    before, stacked, part = stem.removesuffix(".").rpartition(_STACKED)
    if not stacked or part not in _PARTS_OF_STACKED:
        raise UnsupportedError(
            f"{stem}weight has the weights of {codes[0]} experts in one tensor under a name that is not known.",
            advice="Use the model's original bf16 checkpoint.",
            tensor=stem,
        )
    if before.endswith("block_sparse_moe"):
        part = _PARTS_OF_STACKED[part]
    for index in range(codes[0]):
        yield f"{before}.experts.{index}.{part}.weight", index


def _packing(
    packings: Packings, stem: str, names: Mapping[str, str], shapes: Mapping[str, Shape], *, stacked: bool
) -> Packing:
    own = {role: shapes[name][1:] if stacked else shapes[name] for role, name in names.items()}
    packing = packings.of(stem.removesuffix("."), own)
    if packing is None:
        stated = " or ".join(f"{one.bits} bits in groups of {one.group or 'a row'}" for one in packings.candidates)
        raise UnsupportedError(
            f"The tensors of {stem}weight, {own}, are not those of {stated}, which config.json states.",
            advice="config.json and the weights do not belong together; download the checkpoint again.",
            tensor=names["codes"],
            got=own,
        )
    return packing
