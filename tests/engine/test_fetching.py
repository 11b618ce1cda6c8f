"""A store that grows while it is read: whatever fails or is killed, it stays a store, and every expert can be had."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from coterie.checkpoint import Checkpoint
from coterie.engine.fetching import FetchingExperts, open_origin
from coterie.errors import CheckpointFileError, CheckpointNotFoundError, LoadError, StoreBusyError, UsageError
from coterie.extraction import extract
from coterie.inspection import verify
from coterie.origins import CheckpointOrigin
from coterie.spec import ExpertKey
from coterie.store import Store, StoreWriter
from extraction.stores import decoded, present, snapshot
from store.faults import EVERY, Killed, KillingCalls, WatchedCalls

ALL = {0: set(range(8)), 1: set(range(8))}
ABSENT = [ExpertKey("text", layer, "mlp", expert) for layer in (0, 1) for expert in range(2, 8)]


@pytest.fixture(scope="module")
def extracted(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``partial`` is a copy of."""
    extract(moe, directory := tmp_path_factory.mktemp("partial") / "store", experts="0-1")
    return directory


@pytest.fixture
def partial(extracted: Path, tmp_path: Path) -> Path:
    """A store with experts 0 and 1 of each layer."""
    return Path(shutil.copytree(extracted, tmp_path / "store"))


@pytest.fixture
def fetching(moe: Path) -> Iterator[Callable[..., FetchingExperts]]:
    made: list[FetchingExperts] = []
    origin = CheckpointOrigin.open(moe)

    def make(path: Path, **options: object) -> FetchingExperts:
        store = Store.open(path)
        made.append(FetchingExperts(store, origin, store.banks.keys(), **options))
        return made[-1]

    yield make
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experts in made:
            experts.close()


def fetch(experts: FetchingExperts, keys: list[ExpertKey]) -> list[bytes]:
    """The records of these experts, as the cache asks for them."""
    records = []
    for key in keys:
        record = bytearray(experts.layout(key).nbytes)
        experts.extents(key)
        experts.read_into(key, memoryview(record))
        records.append(bytes(record))
    return records


# --- what is read and written -----------------------------------------------------------------------------------------


def test_it_is_the_whole_model(moe, partial, fetching):
    experts, checkpoint = fetching(partial), Checkpoint.open(moe)
    assert set(experts.keys()) == set(checkpoint.keys())
    assert [experts.layout(key).fields for key in experts.keys()] == [
        checkpoint.layout(k).fields for k in experts.keys()
    ]
    assert all((experts.extents(key) is None) == (key.expert > 1) for key in experts.keys())
    assert fetch(experts, sorted(experts.keys())) == [decoded(checkpoint, key) for key in sorted(experts.keys())]
    assert (experts.counts().experts, experts.counts().added) == (12, 0)
    assert experts.counts().nbytes == 12 * experts.layout(ABSENT[0]).payload_nbytes


def test_what_was_fetched_is_in_the_store_after_a_batch(moe, partial, fetching):
    experts = fetching(partial)
    before = snapshot(partial)
    fetch(experts, ABSENT[:3] + ABSENT[6:7])
    assert snapshot(partial) == before
    assert experts.growth.flush()
    assert present(partial) == {0: {0, 1, 2, 3, 4}, 1: {0, 1, 2}}
    assert experts.counts().added == 4
    assert all(experts.extents(key) and experts.checksum(key) for key in ABSENT[:3])
    fetch(experts, ABSENT[:3])
    assert experts.counts().experts == 4
    assert verify(partial, against=moe).ok
    untouched = {name: data for name, data in before.items() if name != "coterie.json"}
    assert untouched.items() <= snapshot(partial).items()


def test_the_same_experts_fetched_and_extracted_are_the_same_bytes(moe, partial, fetching, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(partial, grown)
    extract(moe, grown)
    experts = fetching(partial)
    fetch(experts, random.Random(0).sample(ABSENT, len(ABSENT)))
    experts.close()
    assert snapshot(partial) == snapshot(grown)


def test_converted_experts_are_stored_as_extraction_stores_them(zoo_checkpoint, tmp_path):
    source = zoo_checkpoint("gpt_oss", torch.bfloat16)
    extract(source, tmp_path / "store", experts="3")
    store = Store.open(tmp_path / "store")
    experts = FetchingExperts(store, open_origin(store, source), store.banks.keys())
    fetch(experts, list(experts.keys()))
    experts.close()
    assert store.manifest.is_complete is False
    assert Store.open(tmp_path / "store").manifest.is_complete
    assert verify(tmp_path / "store", against=source).ok


def test_a_full_batch_is_written_by_itself(partial, fetching):
    experts = fetching(partial)
    experts.growth._batch_nbytes = 2 * experts.layout(ABSENT[0]).nbytes
    fetch(experts, ABSENT[:2])
    deadline = time.monotonic() + 60
    while experts.counts().added < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert present(partial)[0] == {0, 1, 2, 3}


def test_closing_twice_and_growing_nothing_is_harmless(partial, fetching):
    before = snapshot(partial)
    experts = fetching(partial)
    experts.close()
    experts.close()
    assert snapshot(partial) == before


# --- several at once --------------------------------------------------------------------------------------------------


def test_what_another_has_added_is_read_from_the_store(partial, fetching):
    one, other = fetching(partial), fetching(partial)
    fetch(one, ABSENT[:4])
    assert one.growth.flush()
    fetch(other, ABSENT[:6])
    assert other.counts().experts == 2
    fetch(other, ABSENT[:4])
    assert other.growth.flush()
    assert other.counts().added == 2
    assert present(partial)[0] == ALL[0]


def test_both_fetched_the_same_and_it_is_added_once(moe, partial, fetching):
    one, other = fetching(partial), fetching(partial)
    fetch(one, ABSENT)
    fetch(other, ABSENT)
    assert one.growth.flush()
    assert other.growth.flush()
    assert (one.counts().added, other.counts().added) == (12, 0)
    assert present(partial) == ALL
    assert verify(partial, against=moe).ok


def test_while_another_writes_everything_can_be_had(moe, partial, fetching):
    experts = fetching(partial)
    base = Store.open(partial).manifest
    with StoreWriter.open(partial, experts.growth._plan(ABSENT[:1])):
        assert fetch(experts, ABSENT) == [decoded(Checkpoint.open(moe), key) for key in ABSENT]
        assert not experts.growth.flush()
        assert experts.growth.waiting == 12
        with pytest.raises(StoreBusyError):
            extract(moe, partial)
    assert Store.open(partial).manifest == base
    assert experts.growth.flush()
    assert present(partial) == ALL


def test_the_end_waits_for_the_other_and_then_gives_up_with_a_warning(partial, fetching, monkeypatch):
    monkeypatch.setattr("coterie.engine.store_growth._PATIENCE_S", 0.0)
    experts = fetching(partial)
    fetch(experts, ABSENT[:2])
    with (
        StoreWriter.open(partial, experts.growth._plan(ABSENT[:1])),
        pytest.warns(UserWarning, match="2 fetched experts were not added.*Another process"),
    ):
        experts.close()


def test_threads_fetch_at_once(moe, partial, fetching):
    experts, checkpoint = fetching(partial), Checkpoint.open(moe)
    expected = [decoded(checkpoint, key) for key in ABSENT]
    results: list[list[bytes]] = []

    def work(seed: int) -> None:
        order = random.Random(seed).sample(range(12), 12)
        records = dict(zip(order, fetch(experts, [ABSENT[i] for i in order]), strict=True))
        results.append([records[i] for i in range(12)])
        experts.growth.flush()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
    assert present(partial) == ALL
    assert experts.counts().added == 12


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", EVERY)
def test_killed_at_every_change_of_the_disk(every, moe, partial, fetching, tmp_path):
    counted = WatchedCalls()
    shutil.copytree(partial, tmp_path / "counted")
    experts = fetching(tmp_path / "counted", calls=counted)
    fetch(experts, ABSENT[4:8])
    experts.growth.flush()
    assert counted.count > 15
    for at in range(0, counted.count, every):
        path = tmp_path / f"store-{at}"
        shutil.copytree(partial, path)
        experts = fetching(path, calls=KillingCalls(at))
        fetch(experts, ABSENT[4:8])
        with pytest.raises(Killed):
            experts.growth.flush()
        # What a killed process leaves: its kernel lock is gone, its threads write no more.
        experts.growth._stopped, experts.growth._calls = True, None
        experts.growth._waiting.clear()
        assert {0, 1} <= present(path)[0], at
        assert verify(path, against=moe).ok, at
        after = fetching(path)
        fetch(after, ABSENT)
        assert after.growth.flush()
        assert present(path) == ALL, at
        assert verify(path, against=moe).ok, at
        shutil.rmtree(path)


class Refusing(WatchedCalls):
    """The disk takes no new file."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def before(self, index: int, name: str, arguments: tuple[object, ...]) -> None:
        if name in ("create", "open", "allocate"):
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_cannot_be_written_is_told_once_and_fetching_goes_on(code, moe, partial, fetching):
    before = snapshot(partial)
    experts, checkpoint = fetching(partial, calls=Refusing(code)), Checkpoint.open(moe)
    fetch(experts, ABSENT[:2])
    with pytest.warns(UserWarning, match="does not grow any more; 2 fetched experts were not added") as caught:
        assert experts.growth.flush()
    assert str(partial) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch(experts, ABSENT) == [decoded(checkpoint, key) for key in ABSENT]
        assert experts.growth.flush()
        experts.close()
    assert {name: data for name, data in snapshot(partial).items() if name != ".coterie.lock"} == before
    assert verify(partial, against=moe).ok


def test_a_store_that_was_removed_does_not_come_back(moe, partial, fetching):
    experts = fetching(partial)
    fetch(experts, ABSENT[:2])
    shutil.rmtree(partial)
    assert fetch(experts, ABSENT[2:3]) == [decoded(Checkpoint.open(moe), ABSENT[2])]
    with pytest.warns(UserWarning, match="no longer a store"):
        experts.growth.flush()
    assert not partial.exists()


def test_a_store_of_another_model_in_its_place_is_left_alone(partial, fetching, zoo_checkpoint, tmp_path):
    experts = fetching(partial)
    fetch(experts, ABSENT[:2])
    shutil.rmtree(partial)
    extract(zoo_checkpoint("qwen3_moe", torch.float32), partial, experts="2-3")
    before = snapshot(partial)
    assert experts.extents(ABSENT[0]) is None
    with pytest.warns(UserWarning, match="cannot be grown"):
        experts.growth.flush()
    assert snapshot(partial) == before


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_checkpoint_that_changes_meanwhile_is_named(how, moe, partial, tmp_path):
    source = shutil.copytree(moe, tmp_path / "copy" / moe.name)
    store = Store.open(partial)
    experts = FetchingExperts(store, open_origin(store, source), store.banks.keys())
    fetch(experts, ABSENT[:1])
    shard = source / "model.safetensors"
    if how == "gone":
        shard.unlink()
    else:
        os.utime(shard, ns=(0, 0))
    with pytest.raises(CheckpointFileError, match="has changed" if how == "changed" else "no longer there") as caught:
        fetch(experts, ABSENT[1:2])
    assert (caught.value.path, caught.value.key) == (shard, ABSENT[1])
    assert str(shard) in str(caught.value)
    with pytest.warns(UserWarning, match=r"model\.safetensors"):
        experts.close()
    assert present(partial) == {0: {0, 1}, 1: {0, 1}}


# --- which checkpoint -------------------------------------------------------------------------------------------------


def test_a_copy_of_the_checkpoint_will_do(moe, partial, tmp_path):
    copy = shutil.copytree(moe, tmp_path / "another name")
    assert open_origin(Store.open(partial), copy).directory == copy


def test_a_directory_has_to_be_named(partial, moe):
    with pytest.raises(UsageError, match=f"{moe.name}.*source"):
        open_origin(Store.open(partial), None)


def test_the_bundled_model_is_known(tmp_path):
    extract("bundled", tmp_path / "store", experts="0")
    assert open_origin(Store.open(tmp_path / "store"), None).model.name == "bundled"


def test_a_missing_checkpoint_is_named(partial, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        open_origin(Store.open(partial), tmp_path / "nowhere")


@pytest.mark.parametrize("other", ["dtype", "family", "weights", "config"])
def test_another_checkpoint_is_refused(other, moe, partial, zoo_checkpoint, tmp_path):
    if other == "dtype":
        source = zoo_checkpoint("qwen3_moe", torch.float32)
    elif other == "family":
        source = zoo_checkpoint("mixtral", torch.bfloat16)
    else:
        source = shutil.copytree(moe, tmp_path / "other")
        if other == "weights":
            data = bytearray((source / "model.safetensors").read_bytes())
            data[-1] ^= 1
            (source / "model.safetensors").write_bytes(data)
        else:
            config = json.loads((source / "config.json").read_text())
            (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(LoadError, match=r"is not the checkpoint that .* was made from") as caught:
        open_origin(Store.open(partial), source)
    assert caught.value.expected == Store.open(partial).manifest.source.integrity


# --- processes --------------------------------------------------------------------------------------------------------

GENERATE = """
import sys, warnings, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
import coterie
store, source, seed = sys.argv[1:]
model = coterie.load(store, missing="fetch", source=source, expert_memory="40%")
print("ready", flush=True)
sys.stdin.readline()
generator = torch.Generator().manual_seed(int(seed))
ids = torch.randint(3, 90, (1, 12), generator=generator)
out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
print(out.tolist(), flush=True)
"""


def test_processes_at_once_grow_one_store_and_end_without_closing(moe, partial, zoo_stock, open_model):
    """This process and another one, both with the store open before either of them fetches; the other just ends."""

    def ask(model: PreTrainedModel, seed: int) -> list[list[int]]:
        ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(seed))
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
        return model.generate(input_ids=ids, **options).tolist()

    command = [sys.executable, "-c", GENERATE, str(partial), str(moe), "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as other:
        model = open_model(partial, missing="fetch", source=moe, expert_memory="40%")
        assert other.stdout.readline() == "ready\n", other.stderr.read()
        other.stdin.write("go\n")
        other.stdin.flush()
        here = ask(model, 1)
        out, err = other.communicate(timeout=250)
    assert other.returncode == 0, err
    stock = zoo_stock("qwen3_moe", torch.bfloat16)
    assert [json.loads(out.strip().splitlines()[-1]), here] == [ask(stock, 0), ask(stock, 1)]
    model.coterie.close()
    assert verify(partial, against=moe).ok
    assert sum(map(len, present(partial).values())) > 10


KILLED = """
import os, signal, sys, torch
from coterie.engine.fetching import FetchingExperts, open_origin
from coterie.store import Store
from coterie.store.syscalls import SystemCalls

class Calls(SystemCalls):
    def rename(self, source, target):
        if sys.argv[3] in target.name:
            os.kill(os.getpid(), signal.SIGKILL)
        super().rename(source, target)

store = Store.open(sys.argv[1])
experts = FetchingExperts(store, open_origin(store, sys.argv[2]), store.banks.keys(), calls=Calls())
for key in experts.keys():
    experts.read_into(key, memoryview(bytearray(experts.layout(key).nbytes)))
experts.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["layer-001", "coterie.json"])
def test_a_process_killed_while_it_writes_leaves_a_store(at, moe, partial, fetching):
    run = subprocess.run([sys.executable, "-c", KILLED, str(partial), str(moe), at], timeout=250, check=False)
    assert run.returncode == -signal.SIGKILL
    assert present(partial) == {0: {0, 1}, 1: {0, 1}}
    assert verify(partial, against=moe).ok
    experts = fetching(partial)
    fetch(experts, ABSENT)
    experts.close()
    assert present(partial) == ALL
    assert verify(partial, against=moe).ok
    assert not list(partial.rglob("*.partial"))
