"""Whether records and dense shards have what a lossy scheme needs; the shapes are those of docs/format.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coterie.spec import Field, RecordLayout

NATIVE = "native"
LOSSY = ("int4", "int8")

_GROUP, _SMALLER_GROUP = 64, 32
_SCALES = "_scales"

_Facts = tuple[str, tuple[int, ...]]
"""Dtype and shape."""


def scheme_problem(scheme: str, layout: RecordLayout) -> str | None:
    """What is wrong with the fields of a record of this scheme; None if nothing is, or the scheme is not lossy."""
    if scheme not in LOSSY:
        return None
    by_name = {field.name: field for field in layout.fields}
    found = 0
    for field in layout.fields:
        if not field.name.endswith((f"_{scheme}", f"_{scheme}t")):
            continue
        found += 1
        scales = by_name.get(f"{field.name}_scales")
        problem = _pair_problem(scheme, field.name, _facts(field), None if scales is None else _facts(scales))
        if problem is not None:
            return problem
    return None if found else f"no field holds codes of {scheme}"


def dense_scheme_problems(scheme: str, tensors: Mapping[str, _Facts]) -> Iterator[tuple[str, str]]:
    """What is wrong with the dense tensors of a store whose linear layers are in a lossy scheme.

    Args:
        scheme: That of the manifest.
        tensors: Name → dtype and shape, of all shards.

    Yields:
        The name of a tensor, and what is wrong with it.
    """
    for name in sorted(tensors):
        if name.endswith(f"_{scheme}{_SCALES}") and name.removesuffix(_SCALES) not in tensors:
            yield name, f"{name[:80]!r} has no codes beside it"
        if not name.endswith(f"_{scheme}"):
            continue
        problem = _pair_problem(scheme, name[:80], tensors[name], tensors.get(f"{name}{_SCALES}"))
        if problem is not None:
            yield name, problem
        if name.removesuffix(f"_{scheme}") in tensors:
            yield name, f"{name.removesuffix(f'_{scheme}')[:80]!r} is there in its own dtype as well"


def _facts(field: Field) -> _Facts:
    return field.dtype, field.shape


def _pair_problem(scheme: str, name: str, codes: _Facts, scales: _Facts | None) -> str | None:
    if scales is None:
        return f"{name!r} has no scales beside it"
    if (_fits_int4 if scheme == "int4" else _fits_int8)(codes, scales):
        return None
    return f"{name!r} {list(codes[1])} and its scales {list(scales[1])} do not fit {scheme}"


def _fits_int4(codes: _Facts, scales: _Facts) -> bool:
    if (codes[0], scales[0], len(codes[1])) != ("U8", "BF16", 2):
        return False
    rows, nbytes = codes[1]
    # The last byte may hold one code only.
    return any(scales[1] == (rows, _groups(columns), 2) for columns in (2 * nbytes, 2 * nbytes - 1))


def _fits_int8(codes: _Facts, scales: _Facts) -> bool:
    if (codes[0], scales[0], len(codes[1])) != ("I8", "BF16", 2):
        return False
    rows, columns = codes[1]
    return scales[1] == (rows, _groups(columns))


def _groups(columns: int) -> int:
    size = _SMALLER_GROUP if columns % _GROUP and columns % _SMALLER_GROUP == 0 else _GROUP
    return -(-columns // size)
