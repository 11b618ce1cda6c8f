"""What the bits depend on that an open model computes: where all of it is the same, they are.

The same weights are not enough. Kernels differ with the processor and the number of threads, and so do sums. It is
better to take two for different that are alike than the other way round.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie.cluster.workers import RemoteModel, WorkerFacts
from coterie.engine.source import ModelSource
from coterie.files.regular import read_bounded
from coterie.hf.releases import installed
from coterie.native.library import library
from coterie.spec.opening import Opening
from coterie.store.manifest_json import manifest_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAID_OF_FILES = ("_name_or_path", "transformers_version")
"""What a configuration says that changes nothing."""
_CPUINFO = Path("/proc/cpuinfo")
_CPU_LINES = ("model name", "flags", "Features", "CPU part")


def bit_identity(model: PreTrainedModel) -> bytes:
    """A digest of all that decides the bits of a model's keys and values for some tokens.

    That is the weights as they are stored, with their precision and which of them are there; the configuration as it is
    in use, rotary embeddings and attention included; the releases of what computes; and the processor.

    Args:
        model: An open one.
    """
    runtime = model.coterie
    facts = {
        "weights": _weights(runtime.source),
        "present": sorted((str(bank), sorted(ids)) for bank, ids in runtime.source.present.items()),
        "missing": runtime.missing,
        "experts_per_token": runtime.experts_per_token,
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "config": _config(model.config.to_dict()),
        "attention": _attention(model.config),
        "releases": [_release("coterie"), installed(), torch.__version__],
        "machine": _machine(),
    }
    return sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).digest()


def with_threads(model: RemoteModel) -> RemoteModel:
    """A model of a cluster with as many threads as one here would have: with others, sums may have other bits."""
    opening = model.opening
    return replace(model, opening=replace(opening, threads=opening.threads or torch.get_num_threads()))


def worker_facts(*models: tuple[str, ModelSource, Opening]) -> WorkerFacts:
    """What decides whether what this process computes belongs together with what others do.

    Args:
        *models: Of each model that is or would be open: its path, its source, and how it is opened.
    """
    kernels = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_native_kernels()}"
    return WorkerFacts(
        models={path: source.fingerprint(fetched=said.missing == "fetch") for path, source, said in models},
        releases={name: _release(name) for name in ("coterie", "torch", "transformers")},
        kernels=kernels,
    )


def _weights(source: ModelSource) -> list[str]:
    said = [source.kind, source.identity, str(source.component), str(source.dtype)]
    if source.store is not None:
        # It has the checksum of every record and of every other file.
        return [*said, sha256(manifest_bytes(source.store.manifest)).hexdigest()]
    checkpoint: Any = source.experts
    said.append(checkpoint.integrity)
    if checkpoint.location.repo_id is None:
        # Of a directory that is samples: what was written since is another.
        for path in sorted({info.path for info in checkpoint.tensors.values()}):
            found = path.stat()
            said.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
    return said


def _config(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _config(one) for name, one in value.items() if name not in _SAID_OF_FILES}
    return [_config(one) for one in value] if isinstance(value, list | tuple) else value


def _attention(config: Any) -> list[str]:
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    return [str(getattr(part, "_attn_implementation", None)) for part in parts]


def _machine() -> list[str]:
    torchs = [
        torch.backends.cpu.get_cpu_capability(),
        torch.backends.mkldnn.enabled,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    ]
    return [platform.machine(), _processor(), _native_kernels(), str(torch.get_num_threads()), *map(str, torchs)]


def _native_kernels() -> str:
    native = library()
    return "none" if native is None else f"{native.functions.coterie_fingerprint().decode()} {native.level_name}"


def _processor() -> str:
    """What the first processor says of itself, where the system tells."""
    try:
        lines = read_bounded(_CPUINFO, 16 << 20).decode("utf-8", "replace").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in _CPU_LINES)


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return "sources"
