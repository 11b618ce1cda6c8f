"""Writing and growing stores: what is refused, what is kept, and that the result does not depend on the order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from coterie.errors import ExtractionError, StoreBusyError, StoreError, UsageError
from coterie.spec import RecordLayout
from coterie.store import (
    BankPlan,
    DenseTensor,
    PlannedExpert,
    Store,
    StorePlan,
    StoreWriter,
    verify_store,
)

from .tiny import (
    NATIVE,
    SIDE_FILES,
    TALKER,
    THINKER,
    dense_tensors,
    make_plan,
    record_bytes,
    snapshot,
    write_bank,
    write_store,
)

TESTS = Path(__file__).parents[1]


def test_the_safetensors_library_opens_every_file(store: Path) -> None:
    opened = Store.open(store)
    files = list(store.rglob("*.safetensors"))
    assert len(files) == 5
    for bank in opened.manifest.banks:
        for segment in bank.segments:
            with safe_open(store / segment.file, "np") as file:
                assert list(file.keys()) == [f"{record.expert:05d}" for record in segment.records]
                for record in segment.records:
                    key = bank.key.expert(record.expert)
                    expected = record_bytes(bank.key, record.expert, opened.layout(key))
                    assert file.get_tensor(f"{record.expert:05d}").tobytes() == expected
    found: dict[str, bytes] = {}
    for path in opened.dense_files:
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():
                if name in ("embed.weight", "lm_head.weight"):
                    assert file.get_slice(name).get_dtype() == "BF16"
                else:
                    found[name] = file.get_tensor(name).tobytes()
    wanted = {tensor.name: b"".join(tensor.chunks()) for tensor in dense_tensors()}
    assert found == {name: wanted[name] for name in ("norm.weight", "mask", "empty")}


def test_dense_tensors_start_aligned_to_their_dtype(tmp_path: Path) -> None:
    write_store(tmp_path, shard_limit=10**9)
    (path,) = Store.open(tmp_path).dense_files
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 4096 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            width = {"F32": 4, "BF16": 2, "BOOL": 1}[entry["dtype"]]
            assert entry["data_offsets"][0] % width == 0
    assert Store.open(tmp_path).dense_index is None


def test_records_are_page_aligned(store: Path) -> None:
    opened = Store.open(store)
    for key in opened.keys():
        (extent,) = opened.extents(key)
        assert extent.offset % 4096 == extent.nbytes % 4096 == extent.at == 0
        assert extent.nbytes == opened.layout(key).nbytes


def test_the_result_does_not_depend_on_order_or_threads(store: Path, tmp_path: Path) -> None:
    plan = make_plan()
    rng = random.Random(5)
    shuffled = replace(
        plan,
        banks=tuple(rng.sample([replace(bank, experts=bank.experts[::-1]) for bank in plan.banks], 3)),
        files=plan.files[::-1],
        ignored=plan.ignored[::-1],
    )
    path = tmp_path / "other"
    with StoreWriter.open(path, shuffled) as writer, ThreadPoolExecutor(4) as pool:
        writer.write_dense(dense_tensors()[::-1], shard_limit=6000)
        for name in SIDE_FILES:
            writer.write_file(name, SIDE_FILES[name])
        for key in writer.missing_banks()[::-1]:
            with writer.bank(key) as out:

                def write(expert: int, out=out) -> None:
                    out.write(expert, memoryview(record_bytes(out.key, expert, out.layout(expert))))

                list(pool.map(write, out.experts[::-1]))
        writer.finish()
    assert snapshot(path) == snapshot(store)


def test_banks_may_be_written_at_the_same_time(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    with StoreWriter.open(path, make_plan()) as writer, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda key: write_bank(writer, key), writer.missing_banks()))
        writer.write_dense(dense_tensors(), shard_limit=6000)
        for name in SIDE_FILES:
            writer.write_file(name, SIDE_FILES[name])
        writer.finish()
    assert snapshot(path) == snapshot(store)


def test_growing_adds_files_and_touches_none(tmp_path: Path) -> None:
    path = tmp_path / "store"
    write_store(path, make_plan([0, 4], layers=[THINKER]))
    before = {name: data for name, data in snapshot(path).items() if data is not None}
    stats = {name: (path / name).stat() for name in before}
    assert [bank.absent for bank in Store.open(path).manifest.banks] == [(0, 1, 2, 3, 4), (1, 2, 3, 5), tuple(range(6))]
    manifest = write_store(path)
    assert manifest.is_complete
    after = snapshot(path)
    for name, data in before.items():
        if name != "coterie.json":
            assert after[name] == data
            assert (path / name).stat().st_ino == stats[name].st_ino
            assert (path / name).stat().st_mtime_ns == stats[name].st_mtime_ns
    new = {name for name, data in after.items() if data is not None} - before.keys()
    assert new == {
        "experts/talker/mlp-layer-000.safetensors",
        "experts/thinker/mlp-layer-000.1.safetensors",
        "experts/thinker/mlp-layer-001.safetensors",
    }
    assert verify_store(path).ok
    opened = Store.open(path)
    buffer = bytearray(NATIVE.nbytes)
    for expert in (0, 1, 3, 4, 5):
        opened.read_into(THINKER.expert(expert), memoryview(buffer))
        assert buffer == record_bytes(THINKER, expert, NATIVE)


def test_growing_by_nothing_changes_nothing(store: Path) -> None:
    before = snapshot(store)
    with StoreWriter.open(store, make_plan([1, 2])) as writer:
        assert writer.growing
        assert writer.missing_banks() == ()
        assert writer.dense_done
        assert writer.finish() == Store.open(store).manifest
    assert snapshot(store) == before


def test_growing_refuses_what_does_not_belong(store: Path) -> None:
    plan = make_plan()
    bank = plan.banks[0]
    other_scheme = replace(bank, experts=(PlannedExpert(expert=0, scheme="other", layout=NATIVE),))
    other_layout = RecordLayout.build(NATIVE.name, [("gate_up_proj", "F32", (2, 2))])
    refused = {
        "that checkpoint differs": make_plan(integrity="00" * 16),
        "it holds": replace(plan, model=replace(plan.model, identity="00" * 16)),
        "is there as native": replace(plan, banks=(other_scheme,)),
        "has other fields": replace(
            plan, banks=(replace(bank, experts=(PlannedExpert(expert=0, scheme="native", layout=other_layout),)),)
        ),
        "differs in experts": replace(plan, banks=(replace(bank, top_k=1),)),
        "has no bank": replace(plan, banks=(replace(bank, key=THINKER._replace(layer=7)),)),
        "only experts can be added": replace(plan, files=("vocab.json",)),
    }
    before = snapshot(store)
    for message, other in refused.items():
        with pytest.raises(StoreError, match=message):
            StoreWriter.open(store, other)
    with pytest.raises(StoreError, match="is a finished store"):
        StoreWriter.open(store, plan, restart=True)
    assert snapshot(store) == before


def test_an_unfinished_store_of_another_plan_is_refused_unless_restarted(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, make_plan()) as writer:
        write_bank(writer, TALKER)
    with pytest.raises(StoreError, match="the experts differ"):
        StoreWriter.open(tmp_path, make_plan([0]))
    with StoreWriter.open(tmp_path, make_plan([0]), restart=True) as writer:
        assert len(writer.missing_banks()) == 3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"not empty.*thesis\.tex"):
        StoreWriter.open(tmp_path, make_plan())
    with pytest.raises(StoreError, match="not empty"):
        StoreWriter.open(tmp_path, make_plan(), restart=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]
    with pytest.raises(StoreError, match="is a file"):
        StoreWriter.open(tmp_path / "thesis.tex", make_plan())


def test_an_unreadable_journal_is_refused_unless_restarted(tmp_path: Path) -> None:
    (tmp_path / ".coterie.journal").write_text("torn")
    with pytest.raises(StoreError, match="journal is unreadable"):
        StoreWriter.open(tmp_path, make_plan())
    with StoreWriter.open(tmp_path, make_plan(), restart=True):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, make_plan()), pytest.raises(StoreBusyError, match=str(os.getpid())) as caught:
        StoreWriter.open(tmp_path, make_plan())
    assert caught.value.pid == str(os.getpid())
    assert not (tmp_path / ".coterie.lock").exists()


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from store.tiny import make_plan\nfrom coterie.store import StoreWriter\n"
        f"writer = StoreWriter.open({str(tmp_path / 'store')!r}, make_plan())\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(StoreBusyError, match=str(process.pid)):
            StoreWriter.open(tmp_path / "store", make_plan())
        process.kill()
        process.wait()
    write_store(tmp_path / "store")


def test_two_threads_opening_at_once_never_both_hold_the_lock(tmp_path: Path) -> None:
    inside = 0
    most = 0
    guard = threading.Lock()
    plan = make_plan([])

    def attempt(_: int) -> None:
        nonlocal inside, most
        try:
            with StoreWriter.open(tmp_path / "store", plan):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with guard:
                    inside -= 1
        except StoreBusyError:
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(attempt, range(60)))
    assert most == 1


def test_wrong_records_are_refused(tmp_path: Path) -> None:
    good = record_bytes(THINKER, 0, NATIVE)
    with StoreWriter.open(tmp_path, make_plan([0, 1])) as writer:
        with pytest.raises(UsageError, match="outside its 'with' block"):
            writer.bank(THINKER).write(0, memoryview(good))
        out = writer.bank(THINKER)
        out.__enter__()
        out.write(0, memoryview(good))
        refused: dict[str, tuple[int, bytes]] = {
            "written twice": (0, good),
            "not to be written": (5, good),
            "bytes, its layout has": (1, good[:-1]),
            "padding": (1, good[:-1] + b"\1"),
        }
        for message, (expert, record) in refused.items():
            with pytest.raises(UsageError, match=message):
                out.write(expert, memoryview(record))
        with pytest.raises(UsageError, match="1 experts of thinker/mlp-layer-000 were not written"):
            out.__exit__(None, None, None)
        assert THINKER in writer.missing_banks()


def test_records_may_be_any_kind_of_buffer(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    with StoreWriter.open(path, make_plan()) as writer, writer.bank(THINKER) as out:
        for expert in out.experts:
            record = np.frombuffer(record_bytes(THINKER, expert, out.layout(expert)), np.uint16).reshape(8, -1)
            out.write(expert, memoryview(record))
    name = "experts/thinker/mlp-layer-000.safetensors"
    assert (path / name).read_bytes() == (store / name).read_bytes()


def test_finishing_names_what_is_missing(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, make_plan()) as writer:
        with pytest.raises(UsageError, match="7 parts are missing, the first is talker/mlp-layer-000") as caught:
            writer.finish()
        assert caught.value.missing[-1] == "the dense tensors"
    assert not (tmp_path / "coterie.json").exists()


def test_a_tensor_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    for got in (3, 5):
        tensor = DenseTensor(name="norm", dtype="F32", shape=(1,), chunks=lambda got=got: [bytes(got)])
        with StoreWriter.open(tmp_path, make_plan()) as writer:
            with pytest.raises(ExtractionError, match=f"'norm' gave {got} bytes"):
                writer.write_dense([tensor])
            assert not writer.dense_done


def test_finished_dense_shards_are_not_read_again(tmp_path: Path) -> None:
    read: list[str] = []

    def watched(tensor: DenseTensor) -> DenseTensor:
        def chunks() -> list[memoryview | bytes]:
            if tensor.name == "lm_head.weight" and "lm_head.weight" not in read:
                read.append(tensor.name)
                raise InterruptedError
            read.append(tensor.name)
            return list(tensor.chunks())

        return replace(tensor, chunks=chunks)

    tensors = [watched(tensor) for tensor in dense_tensors()]
    with StoreWriter.open(tmp_path, make_plan()) as writer, pytest.raises(InterruptedError):
        writer.write_dense(tensors, shard_limit=6000)
    with StoreWriter.open(tmp_path, make_plan()) as writer:
        assert not writer.dense_done
        writer.write_dense(tensors, shard_limit=6000)
        assert writer.dense_done
    assert sorted(read) == ["embed.weight", "empty", "lm_head.weight", "lm_head.weight", "mask", "norm.weight"]


def test_dense_shards_of_an_interrupted_attempt_with_another_limit_vanish(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "other"
    with StoreWriter.open(path, make_plan()) as writer:
        writer.write_dense(dense_tensors(), shard_limit=1)
        assert len(list(path.glob("dense*"))) == 6
        writer.write_dense(dense_tensors(), shard_limit=6000)
    write_store(path)
    assert snapshot(path) == snapshot(store)


def test_bad_dense_tensors_are_refused(tmp_path: Path) -> None:
    good = dense_tensors()
    with StoreWriter.open(tmp_path, make_plan()) as writer:
        with pytest.raises(UsageError, match="same name"):
            writer.write_dense([good[0], good[0]])
        with pytest.raises(UsageError, match="without dense tensors"):
            writer.write_dense([])
        with pytest.raises(UsageError, match=r"Unknown dtype.*'F31'"):
            writer.write_dense([replace(good[0], dtype="F31")])
        with pytest.raises(UsageError, match="Unknown side file"):
            writer.write_file("conf.json", b"")


def test_side_files_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "config.json"
    source.write_bytes(SIDE_FILES["config.json"])
    with StoreWriter.open(tmp_path / "store", make_plan()) as writer:
        writer.copy_file(source)
        writer.copy_file(source, "tokenizer.json")
        assert writer.missing_files() == ("sub/chat_template.jinja",)
        with pytest.raises(StoreError, match="cannot be read"):
            writer.copy_file(tmp_path / "absent", "config.json")
    assert (tmp_path / "store/tokenizer.json").read_bytes() == source.read_bytes()


def bad_plans() -> dict[str, StorePlan]:
    plan = make_plan()
    bank = plan.banks[0]
    twice = replace(bank, experts=(*bank.experts[:3], bank.experts[0]))
    clash = RecordLayout.build(NATIVE.name, [("x", "U8", (1,))])
    clashing = replace(bank, experts=(PlannedExpert(expert=0, scheme="native", layout=clash),))
    return {
        "R14": replace(plan, banks=(twice,)),
        "R14: 9": replace(plan, banks=(replace(bank, experts=(replace(bank.experts[0], expert=9),)),)),
        "R10": replace(plan, banks=(bank, bank)),
        "R18": replace(plan, files=("../config.json",)),
        "R6": replace(plan, model=replace(plan.model, identity="no hex")),
        "both named": replace(plan, banks=(clashing, plan.banks[1])),
    }


@pytest.mark.parametrize("message", bad_plans())
def test_a_plan_that_no_store_can_hold_is_refused_before_anything_is_made(message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        StoreWriter.open(tmp_path / "store", bad_plans()[message])
    assert not (tmp_path / "store").exists()


def large_plan() -> StorePlan:
    layout = RecordLayout.build("large", [("gate_up_proj", "U8", (2**20,)), ("down_proj", "U8", (2**19,))])
    experts = tuple(PlannedExpert(expert=one, scheme="native", layout=layout) for one in range(8))
    banks = tuple(
        BankPlan(key=THINKER._replace(layer=layer), num_experts=8, top_k=2, sources=(), experts=experts)
        for layer in range(8)
    )
    return replace(make_plan([]), banks=banks)


@pytest.mark.slow
@pytest.mark.parametrize("growing", [False, True])
def test_sigkill_at_random_moments(growing: bool, tmp_path: Path) -> None:
    plan = large_plan()
    part = replace(plan, banks=tuple(replace(bank, experts=bank.experts[:2]) for bank in plan.banks))
    wanted, path = tmp_path / "wanted", tmp_path / "store"
    if growing:
        write_store(wanted, part)
        write_store(path, part)
    write_store(wanted, plan)
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from store.test_writer import large_plan\nfrom store.tiny import write_store\n"
        f"print('ready', flush=True); write_store(__import__('pathlib').Path({str(path)!r}), large_plan())"
    )
    rng = random.Random(11 + growing)
    kills = 0
    for _ in range(25):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                # The first one at once, so that some are killed however fast the disk is.
                process.wait(timeout=rng.uniform(0.0, 0.15) if kills else 0.0)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            if process.wait() == 0:
                break
        if (path / "coterie.json").exists():
            assert verify_store(path).ok
    write_store(path, plan)
    assert kills > 0
    assert snapshot(path) == snapshot(wanted)
