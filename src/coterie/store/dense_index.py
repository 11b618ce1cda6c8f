"""Whether the dense shards are well-formed and agree with their index (rules R21 to R23, R25 and R32)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from coterie.errors import StoreFormatError
from coterie.files.regular import read_bounded
from coterie.store import names
from coterie.store.from_hub import blob_of
from coterie.store.manifest import Manifest
from coterie.store.manifest_file import check_file
from coterie.store.safetensors_file import MAX_HEADER_BYTES, MAX_TENSORS, read_header
from coterie.store.scheme_fields import dense_scheme_problems
from coterie.store.strict_json import format_error, parse_json

_FORMAT = {"format": "pt"}


def dense_problems(root: Path, manifest: Manifest) -> Iterator[StoreFormatError]:
    """Every broken rule of the dense files' headers and index; files that cannot be read are left to others."""
    shard_of: dict[str, str] = {}
    facts_of: dict[str, tuple[str, tuple[int, ...]]] = {}
    readable = True
    for facts in manifest.dense:
        path = root / facts.file
        try:
            stamp = check_file(root, facts.file, facts.nbytes)
        except StoreFormatError:
            readable = False
            continue  # whoever compares sizes and checksums has said so
        try:
            header = read_header(path, links=stamp.links)
        except StoreFormatError as error:
            readable = False
            yield error
            continue
        except OSError:
            readable = False
            continue
        if header.metadata != _FORMAT:
            yield format_error(path, "R25", "header.__metadata__", f"the metadata is not {_FORMAT}")
        for tensor in header.tensors:
            facts_of[tensor.name] = (tensor.dtype, tensor.shape)
            first = shard_of.setdefault(tensor.name, facts.file)
            if first != facts.file:
                yield format_error(path, "R25", f"header.{tensor.name}", f"the tensor is in {first!r} as well")
    if readable:
        for name, what in dense_scheme_problems(manifest.dense_schemes.lossy, facts_of):
            yield format_error(root / shard_of[name], "R32", f"header.{name[:80]}", what)
    if manifest.dense_index is not None and readable:
        yield from _index_problems(root / names.DENSE_INDEX, blob_of(root, root / names.DENSE_INDEX), shard_of)


def _index_problems(path: Path, blob: Path | None, shard_of: dict[str, str]) -> Iterator[StoreFormatError]:
    try:
        found = parse_json(read_bounded(blob or path, MAX_HEADER_BYTES, links=False), path, rule="R25")
        value = found.fields("metadata", "weight_map")
        value["metadata"].fields("total_size")["total_size"].integer(0)
        weight_map = {name: node.text() for name, node in value["weight_map"].members(limit=MAX_TENSORS)}
    except StoreFormatError as error:
        yield error
        return
    except OSError as error:
        if error.errno == errno.EFBIG:
            yield format_error(path, "R25", "the file itself", str(error.strerror))
        return
    for name in sorted(weight_map.keys() | shard_of.keys()):
        if weight_map.get(name) != shard_of.get(name):
            what = f"the index says {weight_map.get(name)}, the tensor is in {shard_of.get(name)}"
            yield format_error(path, "R25", f"weight_map.{name[:80]}", what)
            return
