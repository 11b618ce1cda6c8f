"""llama.cpp for this very machine: its source from PyPI, built with the compiler that is here.

PyPI has it inside llama-cpp-python. pip fetches it; cmake and ninja come from PyPI, too, where the machine lacks them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

RELEASE = "llama-cpp-python==0.3.36"

_TARGETS = ("llama-completion", "llama-server")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_MTMD=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
_TILES = Path("ggml/src/ggml-cpu/amx/mmq.cpp")
# gcc 12 thinks that the intrinsic reads 8 of the 64 bytes, leaves the others out, and the first tile instruction is
# illegal. Said to it in full, llama.cpp has its matrix unit.
_HALF_A_CONFIGURATION = "    _tile_loadconfig(&tc);\n"
_WHOLE_CONFIGURATION = '    __asm__ volatile("ldtilecfg %0" :: "m"(tc));\n'


@dataclass(frozen=True)
class Llama:
    """A built llama.cpp.

    Attributes:
        completion: Its program for one completion.
        server: Its server.
        version: What it calls itself, and the release that it came in.
    """

    completion: Path
    server: Path
    version: str


def build_llama(work: Path, *, source: Path | None = None, build: Path | None = None) -> Llama:
    """Fetches and builds llama.cpp; what is there already is used.

    Args:
        work: Where it goes.
        source: A source tree to use instead of fetching one.
        build: The build directory, if it is not to lie in ``work``.

    Raises:
        SystemExit: If a step fails.
    """
    build = build or work / "llama" / "build"
    completion, server = (build / "bin" / name for name in _TARGETS)
    if not (completion.exists() and server.exists()):
        tree = source or _fetch(work / "llama")
        _patch(tree)
        tools, environment = _tools(work / "llama" / "tools")
        print(f"Building llama.cpp in {build}: some minutes ...", file=sys.stderr, flush=True)
        _run([tools["cmake"], "-S", tree, "-B", build, "-G", "Ninja", *_make_program(tools), *_OPTIONS], environment)
        _run([tools["cmake"], "--build", build, "--target", *_TARGETS], environment)
    said = subprocess.run([completion, "--version"], capture_output=True, text=True, check=True)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith(("version", "built"))]
    return Llama(completion, server, f"{', '.join(lines)}; from {RELEASE}")


def _fetch(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = RELEASE.partition("==")[0]
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"), None)
    if archive is None:
        print(f"Fetching {RELEASE} ...", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, RELEASE]
        _run([*pip, "--dest", folder])
        archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    tree = folder / archive.name.removesuffix(".tar.gz")
    if not tree.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return tree / "vendor" / "llama.cpp"


def _patch(tree: Path) -> None:
    file = tree / _TILES
    text = file.read_text()
    if _HALF_A_CONFIGURATION in text:
        file.write_text(text.replace(_HALF_A_CONFIGURATION, _WHOLE_CONFIGURATION))


def _tools(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Where cmake and ninja are, and the environment that they need."""
    found = {name: shutil.which(name) for name in ("cmake", "ninja")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "--upgrade", *missing])
    tools = {name: path or str(folder / "bin" / name) for name, path in found.items()}
    return tools, {"PYTHONPATH": str(folder)} if missing else {}


def _make_program(tools: dict[str, str]) -> list[str]:
    return [f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}"]


def _run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
