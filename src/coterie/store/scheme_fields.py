"""Whether a layout has the fields that a lossy scheme needs; the shapes are those of docs/format.md."""

from __future__ import annotations

from coterie.spec import Field, RecordLayout

_GROUP, _SMALLER_GROUP = 64, 32


def scheme_problem(scheme: str, layout: RecordLayout) -> str | None:
    """What is wrong with the fields of a record of this scheme; None if nothing is, or the scheme is not lossy."""
    if scheme not in ("int4", "int8"):
        return None
    by_name = {field.name: field for field in layout.fields}
    found = 0
    for field in layout.fields:
        if not field.name.endswith((f"_{scheme}", f"_{scheme}t")):
            continue
        found += 1
        scales = by_name.get(f"{field.name}_scales")
        if scales is None:
            return f"{field.name!r} has no scales beside it"
        if not (_fits_int4 if scheme == "int4" else _fits_int8)(field, scales):
            return f"{field.name!r} {list(field.shape)} and its scales {list(scales.shape)} do not fit {scheme}"
    return None if found else f"no field holds codes of {scheme}"


def _fits_int4(codes: Field, scales: Field) -> bool:
    if (codes.dtype, scales.dtype, len(codes.shape)) != ("U8", "BF16", 2):
        return False
    rows, nbytes = codes.shape
    # The last byte may hold one code only.
    return any(scales.shape == (rows, _groups(columns), 2) for columns in (2 * nbytes, 2 * nbytes - 1))


def _fits_int8(codes: Field, scales: Field) -> bool:
    if (codes.dtype, scales.dtype, len(codes.shape)) != ("I8", "BF16", 2):
        return False
    rows, columns = codes.shape
    return scales.shape == (rows, _groups(columns))


def _groups(columns: int) -> int:
    size = _SMALLER_GROUP if columns % _GROUP and columns % _SMALLER_GROUP == 0 else _GROUP
    return -(-columns // size)
