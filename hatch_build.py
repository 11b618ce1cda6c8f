"""Build hook: compiles the native library where there is a C compiler.

Without one the package works all the same, slower; ``COTERIE_NATIVE=require`` makes that an error, and
``COTERIE_NATIVE=skip`` does not try. Where ``CC`` compiles for another platform than this one,
``COTERIE_WHEEL_PLATFORM`` names it as a tag of wheels (``manylinux_2_28_aarch64``): ``scripts/wheels.py`` sets it.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILDER = Path("src", "coterie", "native", "build.py")
MODES = ("", "require", "skip")


class NativeLibrary(BuildHookInterface[Any]):
    """Puts the library beside its sources, and into wheels, which then are for one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles for wheels, editable ones too; an sdist has the sources."""
        mode = os.environ.get("COTERIE_NATIVE", "")
        if mode not in MODES:
            raise ValueError(f"COTERIE_NATIVE={mode!r} is neither 'require' nor 'skip'.")
        if self.target_name != "wheel" or mode == "skip":
            return
        builder = runpy.run_path(str(Path(self.root, BUILDER)))
        try:
            library = builder["build"]()
        except builder["BuildError"] as error:
            if mode == "require":
                raise
            self.app.display_warning(
                f"Coterie's native library was not built, so quantised models run slower: {error}."
            )
            return
        build_data["pure_python"] = False
        # No tag of a Python release: the library is loaded by ctypes.
        here = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{os.environ.get('COTERIE_WHEEL_PLATFORM') or here}"
        relative = library.relative_to(self.root)
        build_data["force_include"][str(relative)] = str(relative.relative_to("src"))
