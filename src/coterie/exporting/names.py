"""The names of a checkpoint's expert tensors, found again from what a store says that they were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from coterie.errors import UnsupportedError
from coterie.hf.keymap import KeyMap, map_keys
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised import MXFP4_BLOCKS, MXFP4_SCALES, fold_names, unfold_keymap
from coterie.origins import StoreOrigin

_SCALE_ENDS = ("weight_scale_inv", "scale", "qscale_weight")


def checkpoint_keymap(origin: StoreOrigin) -> KeyMap:
    """The claims that a checkpoint of the store's model will have: which of its tensors holds what.

    Experts are numbered in it as in the store. What the checkpoint that the store was made from called them, with a
    star for the number, is in the manifest.

    Raises:
        UnsupportedError: If the names cannot be found again.
    """
    dense = list(origin.model.keymap.dense)
    experts = _expert_names(origin)
    folded = fold_names(origin.quantisation, _dtypes([*dense, *experts], origin.quantisation))
    keymap = map_keys(origin.model.skeleton, folded.names, component=origin.model.component)
    unfold_keymap(keymap, folded, origin.quantisation)
    odd = [*keymap.unclaimed, *keymap.missing, *keymap.ignored]
    if odd:
        raise UnsupportedError(
            f"The names of the checkpoint that {origin.directory} was made from cannot be found again: {odd[0]!r} "
            "would be out of place.",
            advice="Export is not possible for this model; the store itself can be used.",
            tensor=odd[0],
        )
    return keymap


def _expert_names(origin: StoreOrigin) -> list[str]:
    """All names of tensors with experts.

    Several banks whose experts have one pattern of names share its numbers: first those of one, then of the next.
    """
    counts: dict[str, int] = defaultdict(int)
    for key, bank in origin.model.banks.items():
        # Experts that are modules have names of modules; in the manifest the star stands for all of it.
        number = "expert_*" if bank.bank.holding == "separate" else "*"
        for pattern in dict.fromkeys(origin.sources(key)):
            counts[pattern.replace(".*.", f".{number}.")] += bank.bank.num_experts
    return [name for pattern, count in counts.items() for name in _filled(pattern, count)]


def _filled(pattern: str, count: int) -> Iterable[str]:
    return (pattern.replace("*", str(number)) for number in range(count)) if "*" in pattern else (pattern,)


def _dtypes(names: list[str], quantisation: Quantisation | None) -> dict[str, str]:
    """Name → a dtype that tells what is quantised from what is not, as a checkpoint's headers do."""
    known = set(names)
    found = dict.fromkeys(names, "BF16")
    for name in names if quantisation is not None else ():
        stem = name.removesuffix("weight")
        if quantisation is not None and quantisation.method == "fp8":
            if stem != name and any(f"{stem}{end}" in known for end in _SCALE_ENDS):
                found[name] = "F8_E4M3"
        elif name.endswith(MXFP4_BLOCKS) and f"{name.removesuffix(MXFP4_BLOCKS)}{MXFP4_SCALES}" in known:
            found[name] = "U8"
    return found
