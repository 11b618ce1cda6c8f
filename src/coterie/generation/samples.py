"""The picture and the spoken word in the package, to try a model with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coterie.files.naming import BUNDLED, resolve_path


def samples() -> Mapping[str, Path]:
    """The samples of the bundled model: a spoken word (``dog.wav``) and a picture (``sandal.png``), by name.

    Example::

        inputs = coterie.build_inputs(processors, "", images=[coterie.samples()["sandal.png"]])
    """
    folder = Path(resolve_path(BUNDLED)) / "samples"
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".wav", ".png")}
