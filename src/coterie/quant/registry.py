"""The schemes by name."""

from __future__ import annotations

from coterie.quant.affine_scheme import AffineScheme
from coterie.quant.grouped import GroupedScheme
from coterie.quant.int8 import Int8
from coterie.quant.nvfp4 import Nvfp4
from coterie.quant.scheme import Scheme
from coterie.spec.encodings import NATIVE, NVFP4, SCHEME_FORMATS
from coterie.spec.scheme_names import check_scheme

GROUPED_SCHEMES: dict[str, GroupedScheme] = {
    name: Int8(form) if form.code_bits == 8 else AffineScheme(form)
    for name, form in SCHEME_FORMATS.items()
    if form is not NVFP4
}
"""Those of codes and of numbers for each group of a row."""

SCHEMES: dict[str, Scheme] = {**GROUPED_SCHEMES, NVFP4.name: Nvfp4()}
"""The lossy schemes; each name of :data:`coterie.spec.encodings.SCHEME_FORMATS` has one."""


def lossy_scheme(name: str) -> Scheme | None:
    """The scheme of this name; None for ``native``.

    Raises:
        UsageError: If there is none; names the nearest one.
    """
    if name == NATIVE:
        return None
    if name not in SCHEMES:
        check_scheme(name)
    return SCHEMES[name]
