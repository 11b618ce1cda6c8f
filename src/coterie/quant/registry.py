"""The schemes by name."""

from __future__ import annotations

from coterie.errors import UsageError
from coterie.quant.affine_scheme import AffineScheme
from coterie.quant.int8 import Int8
from coterie.quant.scheme import Scheme
from coterie.spec import SCHEME_NAMES
from coterie.spec.encodings import AFFINE_SCHEMES, NATIVE, SCHEME_FORMATS

_AFFINE = (AffineScheme(SCHEME_FORMATS[name]) for name in AFFINE_SCHEMES)

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (*_AFFINE, Int8())}
"""The lossy schemes; each name of :data:`coterie.spec.encodings.SCHEME_FORMATS` has one."""


def lossy_scheme(name: str) -> Scheme | None:
    """The scheme of this name; None for ``native``.

    Raises:
        UsageError: If there is none; names the nearest one.
    """
    if name == NATIVE:
        return None
    if name not in SCHEMES:
        raise UsageError.unknown("scheme", name, SCHEME_NAMES)
    return SCHEMES[name]
