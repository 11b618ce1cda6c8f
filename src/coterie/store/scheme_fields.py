"""Whether records and dense shards have what a lossy scheme needs; the shapes are those of docs/format.md."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from coterie.spec import Field, RecordLayout
from coterie.spec.encodings import (
    CHECKPOINT_ENCODINGS,
    NATIVE,
    SCHEME_FORMATS,
    record_scheme,
    scheme_of_codes,
    schemes_named,
)

Facts = tuple[str, tuple[int, ...]]
"""Dtype and shape."""


def scheme_problem(scheme: str, layout: RecordLayout) -> str | None:
    """What is wrong with the fields of a record of this scheme; None if nothing is, or the scheme is not lossy."""
    if "+" in scheme:
        held = record_scheme([*_matrix_schemes(layout)] or [NATIVE])
        if held != scheme:
            return f"its matrices are in {held}"
        problems = (scheme_problem(one, layout) for one in schemes_named(scheme))
        return next((problem for problem in problems if problem is not None), None)
    if scheme not in SCHEME_FORMATS:
        return None
    by_name = {field.name: field for field in layout.fields}
    found = 0
    for field in layout.fields:
        name = SCHEME_FORMATS[scheme].scales_of(field.name)
        if name is None:
            continue
        found += 1
        scales = by_name.get(name)
        problem = _pair_problem(scheme, field.name, _facts(field), None if scales is None else _facts(scales))
        if problem is not None:
            return problem
    return None if found else f"no field holds codes of {scheme}"


def _matrix_schemes(layout: RecordLayout) -> Iterator[str]:
    """The scheme of each matrix of a record, in order."""
    names = {field.name for field in layout.fields}
    schemes = {name: found for name in names if (found := scheme_of_codes(name)) is not None}
    scales: set[str | None] = {scales for _, scales in schemes.values()}
    scales |= {encoding.scales_of(name) for encoding in CHECKPOINT_ENCODINGS for name in names}
    for field in layout.fields:
        form, beside = schemes.get(field.name, (None, None))
        lossy = form.name if form is not None and beside in names else None
        if field.name not in scales and (lossy is not None or len(field.shape) >= 2):
            yield lossy or NATIVE


def dense_scheme_problems(schemes: Collection[str], tensors: Mapping[str, Facts]) -> Iterator[tuple[str, str]]:
    """What is wrong with the dense tensors of a store whose linear layers are in lossy schemes.

    Args:
        schemes: Those of the manifest.
        tensors: Name → dtype and shape, of all shards.

    Yields:
        The name of a tensor, and what is wrong with it.
    """
    weights: dict[str, str] = {}
    for scheme in schemes:
        yield from _problems_of(scheme, tensors)
        of_codes, _ = SCHEME_FORMATS[scheme].ends[0]
        for name in sorted(name for name in tensors if name.endswith(of_codes)):
            first = weights.setdefault(name.removesuffix(of_codes), scheme)
            if first != scheme:
                yield name, f"{name.removesuffix(of_codes)[:80]!r} is there in {first} as well"


def _problems_of(scheme: str, tensors: Mapping[str, Facts]) -> Iterator[tuple[str, str]]:
    of_codes, of_scales = SCHEME_FORMATS[scheme].ends[0]
    for name in sorted(tensors):
        if name.endswith(of_scales) and name.removesuffix(of_scales) + of_codes not in tensors:
            yield name, f"{name[:80]!r} has no codes beside it"
        if not name.endswith(of_codes):
            continue
        base = name.removesuffix(of_codes)
        problem = _pair_problem(scheme, name[:80], tensors[name], tensors.get(base + of_scales))
        if problem is not None:
            yield name, problem
        if base in tensors:
            yield name, f"{base[:80]!r} is there in its own dtype as well"


def _facts(field: Field) -> Facts:
    return field.dtype, field.shape


def _pair_problem(scheme: str, name: str, codes: Facts, scales: Facts | None) -> str | None:
    if scales is None:
        return f"{name!r} has no scales beside it"
    if SCHEME_FORMATS[scheme].fit_together(codes, scales):
        return None
    return f"{name!r} {list(codes[1])} and its scales {list(scales[1])} do not fit {scheme}"
