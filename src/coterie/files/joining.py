"""Makes a whole omni model of two parts of the package: a thinker, and the talker and vocoder that were trained for it.

The package has the thinker's weights once, under the names of a model of its own. A checkpoint of the whole is
written when it is first opened, to the user's cache folder; it is an ordinary directory, which transformers opens too.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from coterie.errors import OutputError
from coterie.files.home import CACHE_VARIABLE, cache_folder
from coterie.files.safetensors_header import CHECKPOINT_HEADER, LENGTH_BYTES, read_header_text

_THINKER_WEIGHTS, _OTHER_WEIGHTS, _WEIGHTS = "model.safetensors", "talker.safetensors", "model.safetensors"
_FOLDER = "joined"
_SMALL = (".json", ".jinja")
_ALIGNMENT = 8


def joined(thinker: Path, rest: Path) -> Path:
    """The directory of the whole model, which is written if it is not there yet.

    Args:
        thinker: Its thinker as a checkpoint of its own. Tokenizer and processors are its.
        rest: ``config.json`` and chat template of the whole, and the weights of everything but the thinker.

    Returns:
        A directory of the name of ``rest``. Other parts, other directory: what is open elsewhere is never changed.

    Raises:
        OutputError: If it cannot be written.
    """
    parts = [*_small_files(thinker, rest).values(), thinker / _THINKER_WEIGHTS, rest / _OTHER_WEIGHTS]
    found = [path.stat() for path in parts]
    content = _content(tuple(parts), tuple((one.st_mtime_ns, one.st_size) for one in found))
    folder = cache_folder() / _FOLDER / content
    if not folder.is_dir():
        try:
            _make(folder, thinker, rest)
        except OSError as error:
            raise OutputError(
                f"The whole model of {rest.name} cannot be written to {folder.parent}: {error.strerror or error}.",
                advice=f"It takes {sum(one.st_size for one in found) / 1e6:.0f} MB. Set {CACHE_VARIABLE} to a folder "
                "that can be written.",
                path=folder,
            ) from error
    return folder / rest.name


def _small_files(thinker: Path, rest: Path) -> dict[str, Path]:
    """The files beside the weights, by name: those of the whole, and of the thinker's what it has not."""
    own = {path.name: path for path in sorted(rest.iterdir()) if path.suffix in _SMALL}
    return {path.name: path for path in sorted(thinker.iterdir()) if path.suffix in _SMALL} | own


@lru_cache(maxsize=4)
def _content(parts: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    """A name for what the parts hold: the same in every environment that has the same package."""
    import xxhash

    del stamps  # they are there so that a file that has changed is read again
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part.name.encode())
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _make(folder: Path, thinker: Path, rest: Path) -> None:
    """Writes it beside where it is to be, and puts it there when it is whole."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    whole = partial / rest.name
    whole.mkdir(parents=True)
    try:
        for name, path in _small_files(thinker, rest).items():
            shutil.copyfile(path, whole / name)
        _join_weights(thinker / _THINKER_WEIGHTS, rest / _OTHER_WEIGHTS, whole / _WEIGHTS)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and has written the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _join_weights(thinker: Path, rest: Path, target: Path) -> None:
    """One safetensors file of two: the thinker's tensors under ``thinker.``, then the others."""
    with thinker.open("rb") as first, rest.open("rb") as second, target.open("wb") as out:
        entries = {f"thinker.{name}": entry for name, entry in _entries(first).items()}
        begin = max(entry["data_offsets"][1] for entry in entries.values())
        for name, entry in _entries(second).items():
            entries[name] = entry | {"data_offsets": [begin + offset for offset in entry["data_offsets"]]}
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        out.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
        for part in (first, second):
            shutil.copyfileobj(part, out)
        out.flush()
        os.fsync(out.fileno())


def _entries(file: BufferedReader) -> dict[str, dict[str, Any]]:
    """What a file of the package says of its tensors; it is left where their bytes begin."""
    header = read_header_text(file, CHECKPOINT_HEADER.nbytes)
    entries: dict[str, dict[str, Any]] = json.loads(header.text)
    entries.pop("__metadata__", None)
    file.seek(header.data_start)
    return entries
