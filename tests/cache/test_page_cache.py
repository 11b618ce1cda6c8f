"""Experts are read into the arena, and leave nothing in the page cache."""

import sys

import pytest
import torch

import coterie
from coterie.cache import ExpertCache
from coterie.plan.disk import disk_facts
from harness.page_cache import cached_bytes, drop

from .sources import LARGE, TinySource, keys_of, leased

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mincore and posix_fadvise")
KEYS = keys_of(40)


@pytest.mark.parametrize("kind", ["aligned", "odd"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_run_leaves_no_page_of_the_experts_behind(tmp_path, kind, direct):
    if disk_facts(tmp_path).filesystem in ("tmpfs", "ramfs"):
        pytest.skip("what lies in memory lies in the page cache")
    source = TinySource.uniform(tmp_path, len(KEYS), layout=LARGE, kind=kind)
    with source.path.open("rb") as file:
        file.read()
    assert cached_bytes(source.path) > 0
    drop([source.path])
    assert cached_bytes(source.path) == 0
    with ExpertCache(source, capacity=4 * LARGE.nbytes, direct=direct, read_threads=3) as cache:
        for _ in range(2):
            with leased(cache, KEYS) as lease:
                assert sum(1 for _ in lease) == len(KEYS)
        assert cache.stats().bytes_read >= 2 * (len(KEYS) - 4) * LARGE.payload_nbytes
    assert cached_bytes(source.path) == 0


def test_a_model_leaves_only_its_dense_part_and_no_expert(zoo_store, tmp_path):
    if disk_facts(tmp_path).filesystem in ("tmpfs", "ramfs"):
        pytest.skip("what lies in memory lies in the page cache")
    store = zoo_store("mixtral")
    experts = sorted((store / "experts").rglob("*.safetensors"))
    drop(experts)
    model = coterie.load(store, expert_memory="50%")

    with torch.inference_mode():
        model(torch.arange(16)[None])
    assert model.coterie.stats().total.bytes_read > 0
    model.coterie.close()
    assert sum(cached_bytes(path) for path in experts) == 0
