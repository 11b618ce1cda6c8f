"""How the packages of an extra are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def install_advice(extra: str) -> str:
    """The sentence that says how to install what an extra of the package stands for.

    It names the packages themselves: they can be had wherever Coterie came from, a clone or a wheel.

    Args:
        extra: Its name in ``pyproject.toml``, such as ``analysis``.
    """
    # Here, not above: they take longer to import than all else that a size or a key needs.
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("coterie") or ()]
    chosen = [one for one in needed if one.marker is not None and one.marker.evaluate({"extra": extra})]
    return f"Install it: pip install {' '.join(_quoted(one) for one in chosen)}."


def _quoted(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"'{requirement.name}{extras}{requirement.specifier}'"
