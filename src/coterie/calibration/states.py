"""The hidden states that layers are given, on disk: a model is run one layer at a time, over all inputs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash

from coterie.errors import StoreError
from coterie.files.json_text import JsonProblem, parse_json
from coterie.files.regular import read_bounded, regular_file
from coterie.quant.dtypes import SAFETENSORS_DTYPES, TORCH_DTYPES, tensor_bytes
from coterie.store.disk import explained


class States:
    """What a layer is given in every run, and what the layer after it will be.

    What the next layer is given replaces this only when :meth:`advance` is called. Killed at any moment, another object
    goes on from the last layer that was complete.

    Args:
        folder: Where they are kept; made if it is not there.
        fingerprint: Of the runs: states of others are removed.
        runs: How many there are.

    Attributes:
        layer: Which layer :meth:`load` gives the inputs of. 0 is given what the model itself makes: nothing is kept.
        returns: For each layer before that, how many values it returns as a tuple; None for a single tensor.
    """

    def __init__(self, folder: Path, fingerprint: str, runs: int) -> None:
        self._folder = folder
        self._advice = f"Remove {folder}, then run the same command again."
        self._fingerprint = fingerprint
        self._count = runs
        self._kept: list[dict[str, Any]] = []
        self._next: dict[int, dict[str, Any]] = {}
        self.layer = 0
        self.returns: list[int | None] = []
        with explained(folder):
            folder.mkdir(exist_ok=True)
        self._resume()

    def load(self, run: int) -> torch.Tensor:
        """What the layer is given in a run.

        Raises:
            StoreError: If the file is not what was written.
        """
        path, facts = self._path(self.layer, run), self._kept[run]
        try:
            with regular_file(path, links=False) as file:
                data = bytearray(file.read())
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.", advice=self._advice, path=path) from error
        if str(xxhash.xxh3_64_hexdigest(data)) != facts["xxh3"]:
            raise StoreError(f"{path} is not what was written.", advice=self._advice, path=path)
        return torch.frombuffer(data, dtype=TORCH_DTYPES[facts["dtype"]]).view(facts["shape"])

    def keep(self, run: int, hidden: torch.Tensor) -> None:
        """Keeps what the next layer is given in a run."""
        path = self._path(self.layer + 1, run)
        data = tensor_bytes(hidden)
        with explained(path, len(data)), path.open("wb") as file:
            file.write(data)
        self._next[run] = {
            "dtype": SAFETENSORS_DTYPES[hidden.dtype],
            "shape": list(hidden.shape),
            "xxh3": str(xxhash.xxh3_64_hexdigest(data)),
        }

    @property
    def has_next(self) -> bool:
        """Whether what the next layer is given has been kept for every run."""
        return len(self._next) == self._count

    def advance(self, returns: int | None) -> None:
        """Goes to the next layer.

        Args:
            returns: How many values this layer returns as a tuple; None for a single tensor.
        """
        kept = [self._next[run] for run in range(self._count)]
        value = {"fingerprint": self._fingerprint, "returns": [*self.returns, returns], "states": kept}
        marker = self._marker(self.layer + 1)
        partial = marker.with_suffix(".partial")
        with explained(marker):
            partial.write_text(json.dumps(value), encoding="utf-8")
            partial.replace(marker)
        before, self.layer = self.layer, self.layer + 1
        self.returns, self._kept, self._next = [*self.returns, returns], kept, {}
        self._remove(before)

    def remove(self) -> None:
        """Removes everything."""
        with explained(self._folder), suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir()):
                path.unlink()
            self._folder.rmdir()

    def _resume(self) -> None:
        found = -1
        for marker in self._folder.glob("layer-*.json"):
            value = self._marked(marker)
            if value is not None and len(value["returns"]) > found:
                found = self.layer = len(value["returns"])
                self.returns, self._kept = value["returns"], value["states"]
        with explained(self._folder):
            for path in self._folder.iterdir():
                if not path.name.startswith(f"layer-{self.layer:05d}") or not self.layer:
                    path.unlink()

    def _marked(self, marker: Path) -> dict[str, Any] | None:
        try:
            value = parse_json(read_bounded(marker, 2**26, links=False))
        except (OSError, JsonProblem):
            return None
        whole = isinstance(value, dict) and value.get("fingerprint") == self._fingerprint
        return value if whole and len(value["states"]) == self._count else None

    def _remove(self, layer: int) -> None:
        with explained(self._folder):
            self._marker(layer).unlink(missing_ok=True)
            for run in range(self._count):
                self._path(layer, run).unlink(missing_ok=True)

    def _marker(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:05d}.json"

    def _path(self, layer: int, run: int) -> Path:
        return self._folder / f"layer-{layer:05d}-run-{run:05d}.states"
