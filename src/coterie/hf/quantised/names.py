"""The tensors of a quantised checkpoint under the names that it would have if it were not quantised.

What transformers' conversions say about ``experts.3.up_proj.weight`` holds for its scales too. So names are folded
(weights and scales become one name), mapped as those of an ordinary checkpoint, and unfolded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coterie.errors import CheckpointFileError, TensorMissingError, UnsupportedError
from coterie.hf.decoding import is_plain
from coterie.hf.keymap import FieldSource, KeyMap
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised.folded import FoldedNames
from coterie.spec.encodings import FP8, MXFP4

((_, FP8_SCALE),) = FP8.ends
((MXFP4_BLOCKS, MXFP4_SCALES),) = MXFP4.ends

_FP8_DTYPE = "F8_E4M3"
# Names of scales that some releases have, in place of `weight` and all behind it.
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "output_scale")
_OTHER_SCALES = ("scale", "qscale_weight", "weight_scale")


def fold_names(quantisation: Quantisation | None, dtypes: Mapping[str, str]) -> FoldedNames:
    """Folds the names of what is quantised and used as it lies: FP8 and MXFP4.

    Args:
        quantisation: What its configuration says.
        dtypes: Name of every tensor → safetensors' name of its dtype.

    Raises:
        TensorMissingError: If quantised weights have no scales.
        UnsupportedError: If weights are packed in a way that is not supported.
    """
    if quantisation is None or quantisation.packings is not None:
        return FoldedNames(names=list(dtypes))
    find = _fp8_scale if quantisation.method == "fp8" else _mxfp4_scale
    folded = FoldedNames(names=[], block=quantisation.block)
    for name, dtype in dtypes.items():
        base, scale = find(name, dtype, dtypes)
        if scale is not None:
            folded.parts[base] = (name, scale)
    taken = {name for pair in folded.parts.values() for name in pair}
    if quantisation.method == "fp8":
        stems = {base.removesuffix("weight") for base in folded.parts}
        folded.unused = [
            name for name in dtypes for end in _OF_ACTIVATIONS if name.endswith(end) and name[: -len(end)] in stems
        ]
    folded.names = [*(name for name in dtypes if name not in taken | set(folded.unused)), *folded.parts]
    return folded


def _fp8_scale(name: str, dtype: str, dtypes: Mapping[str, str]) -> tuple[str, str | None]:
    stem = name.removesuffix("weight")
    candidates = [f"{name}{FP8_SCALE}", *(f"{stem}{other}" for other in _OTHER_SCALES if stem != name)]
    scale = next((candidate for candidate in candidates if candidate in dtypes), None)
    if dtype == _FP8_DTYPE and scale is None:
        raise TensorMissingError(
            f"The checkpoint lacks {candidates[0]!r}, the scales of {name!r}.",
            advice="Download the checkpoint again.",
            tensor=candidates[0],
        )
    if scale is not None and dtype not in (_FP8_DTYPE, "F16", "BF16", "F32"):
        raise UnsupportedError(
            f"{name!r} is quantised to {dtype}; of FP8 checkpoints only {_FP8_DTYPE} is supported.",
            advice="Use the model's original bf16 checkpoint, or a release of it in FP8 (e4m3).",
            tensor=name,
            dtype=dtype,
        )
    # Beside weights that are not quantised, a tensor called `scale` is something else.
    return name, scale if dtype == _FP8_DTYPE else None


def _mxfp4_scale(name: str, dtype: str, dtypes: Mapping[str, str]) -> tuple[str, str | None]:
    base = name.removesuffix(MXFP4_BLOCKS)
    scale = f"{base}{MXFP4_SCALES}"
    return base, scale if base != name and scale in dtypes and dtype == "U8" else None


def unfold_keymap(keymap: KeyMap, folded: FoldedNames, quantisation: Quantisation | None) -> None:
    """Puts the stored names into a map of folded ones; the fields of experts become those of their records.

    Raises:
        CheckpointFileError: If some experts of a bank are quantised and others are not.
        UnsupportedError: If what is quantised is not used as it lies, or MXFP4 is found outside experts.
    """
    if quantisation is None:
        return
    for bank, sources in keymap.experts.items():
        if quantisation.packings is not None:
            _check_packed(sources, folded)
            continue
        keymap.experts[bank] = {
            name: part
            for parameter, source in sources.items()
            for name, part in _unfold_source(parameter, source, folded, quantisation).items()
        }
    for name in [name for name in keymap.dense if name in folded.parts]:
        weights, scales = folded.parts[name]
        if quantisation.method != "fp8":
            raise UnsupportedError(
                f"{weights!r} is in MXFP4 outside the experts, which is not supported.",
                advice="Use the model's original bf16 checkpoint.",
                tensor=weights,
            )
        keymap.dense[scales] = f"{keymap.dense[name]}{FP8_SCALE}"
    for names in (keymap.ignored, keymap.left_out, keymap.outside, keymap.unclaimed):
        names[:] = sorted({stored for name in names for stored in folded.stored(name)})
    keymap.ignored[:] = sorted([*keymap.ignored, *folded.unused])


def _check_packed(sources: Mapping[str, FieldSource], folded: FoldedNames) -> None:
    """Packed weights keep their folded names: what they become is a record's fields of a scheme."""
    for parameter, source in sources.items():
        names = [name for group in source.names.values() for name in group]
        _check_all(source, [name for name in names if name in folded.packed], names, parameter)


def _unfold_source(
    parameter: str, source: FieldSource, folded: FoldedNames, quantisation: Quantisation
) -> dict[str, FieldSource]:
    names = [name for group in source.names.values() for name in group]
    quantised = [name for name in names if name in folded.parts]
    if not quantised:
        return {parameter: source}
    _check_all(source, quantised, names, parameter)
    (ends,) = FP8.ends if quantisation.method == "fp8" else MXFP4.ends
    return {f"{parameter}{end}": _stored_part(source, folded, part) for part, end in enumerate(ends)}


def _check_all(source: FieldSource, quantised: list[str], names: list[str], parameter: str) -> None:
    if quantised and len(quantised) < len(names):
        other = next(name for name in names if name not in set(quantised))
        raise CheckpointFileError(
            f"{quantised[0]!r} is quantised, and {other!r} of the same bank is not.",
            advice="Save the checkpoint with all experts of a layer in one form.",
            tensor=quantised[0],
        )
    if quantised and (not is_plain(source) or source.holding == "rows"):
        raise UnsupportedError(
            f"transformers rearranges {quantised[0]!r} on loading, which is not supported for quantised experts.",
            advice="Use the model's original bf16 checkpoint.",
            tensor=quantised[0],
            parameter=parameter,
        )


def _stored_part(source: FieldSource, folded: FoldedNames, part: int) -> FieldSource:
    names = {pattern: [folded.parts[name][part] for name in group] for pattern, group in source.names.items()}
    return replace(source, names=names)
