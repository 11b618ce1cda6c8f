"""Weights of linear layers outside experts, as pairs of tensors named after them."""

from __future__ import annotations

from collections.abc import Iterable

from coterie.quant.grouping import has_whole_group
from coterie.quant.matrices import StoredMatrix
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


def linear_names(names: Iterable[str], scheme: Scheme) -> dict[str, tuple[str, str]]:
    """The weights that are stored in a scheme among tensors of these names: name → names of codes and scales.

    Pairs of which one is not there are not among them.
    """
    given = set(names)
    of_codes, of_scales = scheme.form.ends[0]
    found: dict[str, tuple[str, str]] = {}
    for name in given:
        base = name.removesuffix(of_codes)
        if base != name and base + of_scales in given:
            found[base] = name, base + of_scales
    return dict(sorted(found.items()))
