"""Fixtures of the whole suite: offline, one thread, tiny checkpoints made once per session.

torch and transformers are imported by fixtures: the process that hands out the tests reads this file, and runs none.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

import left_behind
from processor import INTEL

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# To import makes many objects that stay, and to open models makes many and little garbage: to look for it takes long.
gc.disable()
gc.set_threshold(50_000, 20, 20)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For the processes that tests start, too: two workers that start two threads each on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A thread that waits for another one gives its core away: on busy cores, turning on the spot takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# On processors that are not Intel's, MKL adds float32 sums in an order that depends on where tensors lie in memory, and
# stock is not the same twice (docs/concepts.md). Set before MKL is loaded, this ends it.
os.environ.setdefault("MKL_CBWR", "" if INTEL else "AUTO")

ZooCheckpoint = Callable[..., Path]

# The same examples in every run, however slow the machine is: what fails here fails for everybody.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are processors: many tests wait for processes, servers and disks."""
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Garbage is not looked for in what was imported, only in what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    # Tiny models gain nothing from more threads, and busy machines lose a lot.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and thousands of small files would each be waited for.

    That everything is synced at its time is tested by the calls (``store/faults.py``).
    """

    def sync(file: int | Any) -> None:
        os.fstat(file if isinstance(file, int) else file.fileno())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What a test draws does not depend on the tests that ran before it in this process."""
    import torch

    random.seed(0)
    # torch.manual_seed remembers for accelerators, if there were any, from where it was called.
    torch.default_generator.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch during the test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 MoE in bf16 with a tokenizer: words ``w3`` …; read it only."""
    import torch

    from zoo import checkpoint
    from zoo.tokenizer import add_tokenizer

    directory = checkpoint("qwen3_moe", torch.bfloat16, tmp_path_factory.mktemp("readable"))
    add_tokenizer(directory, chat=False)
    return directory


@pytest.fixture(scope="module")
def omni(zoo_checkpoint: ZooCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Qwen3-Omni with a tokenizer and a chat template; the module's own."""
    from zoo.tokenizer import add_tokenizer

    directory = tmp_path_factory.mktemp("omni") / "checkpoint"
    shutil.copytree(zoo_checkpoint("qwen3_omni"), directory)
    add_tokenizer(directory, chat=True)
    return directory


@pytest.fixture(scope="session")
def joined_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``XDG_CACHE_HOME`` in which the bundled omni model is put together already; read it only."""
    from coterie.files.naming import BUNDLED_OMNI, resolve_path

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        resolve_path(BUNDLED_OMNI)
    return cache


@pytest.fixture
def bundled_omni(joined_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the bundled omni model; during the test its name leads there, too."""
    from coterie.files.naming import BUNDLED_OMNI, resolve_path

    monkeypatch.setenv("XDG_CACHE_HOME", str(joined_cache))
    return Path(resolve_path(BUNDLED_OMNI))


@pytest.fixture(scope="session")
def zoo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ZooCheckpoint:
    """Gives the directory of a zoo model's checkpoint: ``zoo_checkpoint(name, dtype, max_shard_size=None)``."""
    import torch

    from zoo import checkpoint

    root = tmp_path_factory.mktemp("zoo")

    def make(name: str, dtype: torch.dtype = torch.float32, max_shard_size: str | int | None = None) -> Path:
        return checkpoint(name, dtype, root, max_shard_size=max_shard_size)

    return make


@pytest.fixture(scope="session")
def moe(zoo_checkpoint) -> Path:
    """A Qwen3-MoE of 2 layers with 8 experts each, one tensor per expert: bytes go straight from file to file."""
    import torch

    return zoo_checkpoint("qwen3_moe", torch.bfloat16)


@pytest.fixture(scope="session")
def zoo_store(zoo_checkpoint: ZooCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives a store of a zoo model: ``zoo_store(name, dtype, experts=None, layers=None)``; read it only."""
    import torch

    from coterie.extraction import extract

    root = tmp_path_factory.mktemp("stores")

    def make(name: str, dtype: torch.dtype = torch.float32, experts: object = None, layers: object = None) -> Path:
        directory = root / f"{name}-{dtype}-{experts}-{layers}".replace(" ", "")
        if not directory.exists():
            extract(zoo_checkpoint(name, dtype), directory, experts=experts, layers=layers)
        return directory

    return make


@pytest.fixture(scope="session")
def zoo_stock(zoo_checkpoint: ZooCheckpoint) -> Callable[..., PreTrainedModel]:
    """Gives the stock model with eager experts: ``zoo_stock(name, dtype)``, one per session; do not change it."""
    import torch

    from zoo import stock

    models: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        if (name, dtype) not in models:
            models[name, dtype] = realigned(stock(zoo_checkpoint(name, dtype), dtype))
        return models[name, dtype]

    return make


def realigned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights where torch allocates: at a file's odd offsets float32 products round otherwise."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    for buffer in model.buffers():
        buffer.data = buffer.data.clone()
    return model


@pytest.fixture
def open_model() -> Iterator[Callable[..., PreTrainedModel]]:
    """``coterie.engine.load`` without the advice on small arenas; frees the models after the test."""
    from coterie.engine import load

    opened: list[Any] = []

    def open_(path: str | Path, **options: Any) -> PreTrainedModel:
        if not options.keys() & {"memory", "expert_memory"}:
            options["expert_memory"] = "100%"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The experts have")
            opened.append(load(path, **options))
        return opened[-1]

    yield open_
    for model in opened:
        model.coterie.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny parts leave memory, too, and always."""
    from coterie.engine import opening
    from coterie.hf import parts

    monkeypatch.setattr(parts, "LEAST_PART", 1)
    monkeypatch.setattr(parts, "LEAST_TABLE", 1)
    monkeypatch.setattr(parts, "LEAST_TENSOR", 64)
    monkeypatch.setattr(opening, "goes_by_phase", lambda *_: True)


@pytest.fixture
def open_by_phase(small_parts: None, open_model: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """As ``open_model``, with parts in memory only while they are needed."""

    def open_(path: Path, **options: Any) -> PreTrainedModel:
        return open_model(path, memory="4GiB", max_context=256, **options)

    return open_


@pytest.fixture(scope="module", autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    """No module changes what the ones after it find: which these are depends on the number of workers."""
    for name in left_behind.OF_MODELS:
        os.environ.pop(name, None)
    before = left_behind.settings()
    yield
    assert left_behind.changed(before, left_behind.settings()) == []


@pytest.fixture(scope="module", autouse=True)
def _no_thread_goes_on() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert left_behind.threads(before) == []


@pytest.fixture(autouse=True)
def _a_fresh_environment(request: pytest.FixtureRequest) -> None:
    """Programs that a test starts do not inherit what models without a budget, opened by other tests, wrote down."""
    if {"memory", "docs"} & set(request.path.parts):
        monkeypatch = request.getfixturevalue("monkeypatch")
        for name in left_behind.OF_MODELS:
            monkeypatch.delenv(name, raising=False)
