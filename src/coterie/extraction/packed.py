"""What is made of packed weights: they are kept in the schemes that take them as they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from coterie.errors import UsageError
from coterie.extraction.linears import ReadRows, StoredPair
from coterie.extraction.quantising import SchemeOf, one_scheme
from coterie.origins import Origin
from coterie.quant.dtypes import SAFETENSORS_DTYPES, tensor_bytes
from coterie.quant.scheme import Parts
from coterie.spec import ExpertKey
from coterie.spec.dense_schemes import DenseSchemes
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS, matrix_schemes
from coterie.store import DenseTensor


def wanted_of_packed(what: str, have: str, want: str) -> str:
    """The scheme that something packed gets.

    Args:
        what: What it is, for messages.
        have: The scheme that takes it as it is; native for what is not packed.
        want: The one that was asked for; native for one that keeps it.

    Raises:
        UsageError: If it would be quantised again without fewer bits.
    """
    if have == NATIVE or want in (have, NATIVE):
        return have if want == NATIVE else want
    count = max(one.count("+") for one in (have, want)) + 1
    for old, new in zip(matrix_schemes(have, count), matrix_schemes(want, count), strict=True):
        if old not in (NATIVE, new) and (new == NATIVE or _bits(new) >= _bits(old)):
            raise UsageError(
                f"{what} quantised already, to {_bits(old)} bits; as {want} they would be rounded a second time and be "
                "no smaller.",
                advice=f"Leave the scheme out: they are kept as they are, as {have}. To quantise otherwise, use the "
                "model's original checkpoint.",
                have=have,
                want=want,
            )
    return want


def scheme_of_packed(origin: Origin, key: ExpertKey, want: str) -> str:
    """The scheme that an expert gets where one was asked for.

    Raises:
        UsageError: See :func:`wanted_of_packed`.
    """
    return wanted_of_packed("The experts of this checkpoint are", origin.scheme(key), want)


def schemes_of_packed(origin: Origin, scheme_of: str | SchemeOf) -> SchemeOf:
    """The scheme of each expert, where one was asked for: of what is packed, native stands for what keeps it as it is.

    Warns if any is to be quantised again.

    Raises:
        UsageError: See :func:`wanted_of_packed`.
    """
    asked = one_scheme(scheme_of)
    if not origin.packed:
        return asked
    found = {key: scheme_of_packed(origin, key, asked(key)) for key in origin.keys()}
    if any(origin.scheme(key) not in (NATIVE, scheme) for key, scheme in found.items()):
        warn_rounded_twice(origin)
    return found.__getitem__


def warn_rounded_twice(origin: Origin) -> None:
    """Warns that something packed is quantised to fewer bits."""
    warnings.warn(
        f"{origin.model.name} is quantised already, and is quantised again to fewer bits: the result has the errors of "
        "both. Made of the model's original checkpoint it would be better.",
        stacklevel=4,
    )


def _bits(scheme: str) -> int:
    return SCHEME_FORMATS[scheme].code_bits


def packed_rows(origin: Origin, name: str) -> ReadRows:
    """Reads a packed weight outside experts, dequantised."""

    def rows() -> Iterator[torch.Tensor]:
        origin.download([name])
        return origin.packed[name].rows(origin.model.dtype)

    return rows


def packed_tensors(origin: Origin, name: str, schemes: DenseSchemes) -> tuple[DenseTensor, ...]:
    """What a store has of a packed weight outside experts that is not quantised again.

    Codes and scales, if its part is in the scheme that takes it as it is; else the weight, dequantised.

    Args:
        origin: Where it comes from.
        name: Its name.
        schemes: Those of the store.
    """
    weight, matrix = origin.packed[name], origin.packed_dense.matrices.get(name)

    def parts() -> Iterator[Parts]:
        origin.download([name])
        return weight.parts()

    def chunks() -> Iterator[bytes]:
        for rows in packed_rows(origin, name)():
            yield tensor_bytes(rows).tobytes()

    if matrix is not None and schemes.of(origin.packed_dense.parts[name]) == matrix.scheme.name:
        return StoredPair(matrix, parts).tensors()
    dtype = SAFETENSORS_DTYPES[origin.model.dtype]
    return (DenseTensor(name=name, dtype=dtype, shape=weight.shape, chunks=chunks),)
