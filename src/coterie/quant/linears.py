"""Weights of linear layers outside experts, as pairs of tensors named after them."""

from __future__ import annotations

from collections.abc import Iterable

from coterie.quant.grouping import has_whole_group
from coterie.quant.parameters import StoredMatrix
from coterie.quant.scheme import Scheme

ALIGNMENT = 2
"""Bytes to whose multiple both tensors of a pair begin, so that they can lie side by side in a file."""


def stored_linear(name: str, rows: int, columns: int, scheme: Scheme) -> StoredMatrix | None:
    """How the weight of a linear layer is stored in a scheme; None if it is better left as it is.

    That is where a row is shorter than a group, and where codes would have an odd number of bytes (in any scheme, so
    that all schemes store the same weights).

    Args:
        name: Name of the weight.
        rows: Outputs.
        columns: Inputs.
        scheme: The scheme.
    """
    if not has_whole_group(columns) or (rows % ALIGNMENT and columns % (2 * ALIGNMENT)):
        return None
    return StoredMatrix(parameter=name, shape=(rows, columns), scheme=scheme, transposed=False)


def linear_names(names: Iterable[str], scheme: Scheme) -> dict[str, tuple[str, ...]]:
    """The weights that are stored in a scheme among tensors of these names: name → names of codes and scales.

    Pairs of which one is not there are not among them.
    """
    given = set(names)
    suffixes = [suffix for suffix, _, _ in scheme.parts(1, 1)]
    found: dict[str, tuple[str, ...]] = {}
    for name in given:
        base = name.removesuffix(f"_{scheme.name}")
        parts = tuple(f"{base}_{scheme.name}{suffix}" for suffix in suffixes)
        if base != name and given.issuperset(parts):
            found[base] = parts
    return dict(sorted(found.items()))
