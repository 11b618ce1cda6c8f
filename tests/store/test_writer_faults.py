"""A writer that is stopped at any call: whatever it left is no store or a whole one, and resuming ends the same."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from coterie.errors import CoterieError, DiskSpaceError, StoreError
from coterie.store import Store, StoreWriter, is_store, verify_store

from .faults import EVERY, FailingCalls, Killed, KillingCalls, PowerCuts, ShortWrites, WatchedCalls, restore
from .tiny import THINKER, make_plan, snapshot, write_bank, write_store


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    """An undisturbed store of experts 0 to 3."""
    path = tmp_path_factory.mktemp("fresh") / "store"
    write_store(path, make_plan(range(4)))
    return snapshot(path)


@pytest.fixture(scope="module")
def grown(fresh: dict[str, bytes | None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    """The same store grown by experts 4 and 5 undisturbed."""
    path = tmp_path_factory.mktemp("grown") / "store"
    restore(fresh, path)
    write_store(path)
    return snapshot(path)


def number_of_calls(tmp_path: Path, base: dict[str, bytes | None] | None) -> int:
    path = tmp_path / "counted"
    if base is not None:
        restore(base, path)
    calls = WatchedCalls()
    write_store(path, make_plan(range(4 if base is None else 6)), calls=calls)
    return calls.count


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("mode", ["kill", "error"])
def test_new_store_stopped_at_every_call(mode: str, every: int, tmp_path: Path, fresh: dict[str, bytes | None]) -> None:
    total = number_of_calls(tmp_path, None)
    assert total > 50
    plan = make_plan(range(4))
    for at in range(0, total, every):
        path = tmp_path / f"{mode}-{at}"
        failing = KillingCalls(at) if mode == "kill" else FailingCalls(at, errno.EIO)
        try:
            write_store(path, plan, calls=failing)
        except (Killed, CoterieError):
            pass
        else:
            # Only removing temporary files after an error and pure hints may fail unnoticed; here nothing may.
            pytest.fail(f"call {at} failed and nobody noticed")
        if is_store(path):
            assert verify_store(path).ok, at
        write_store(path, plan, calls=WatchedCalls())
        assert snapshot(path) == fresh, at
        shutil.rmtree(path)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("mode", ["kill", pytest.param("error", marks=pytest.mark.slow)])
def test_growth_stopped_at_every_call(
    mode: str, every: int, tmp_path: Path, fresh: dict[str, bytes | None], grown: dict[str, bytes | None]
) -> None:
    total = number_of_calls(tmp_path, fresh)
    for at in range(0, total, every):
        path = tmp_path / f"{mode}-{at}"
        restore(fresh, path)
        failing = KillingCalls(at) if mode == "kill" else FailingCalls(at, errno.EIO)
        with pytest.raises((Killed, CoterieError)):
            write_store(path, calls=failing)
        assert verify_store(path).ok, at
        assert len(Store.open(path).keys()) in (12, 17)
        write_store(path, calls=WatchedCalls())
        assert snapshot(path) == grown, at
        shutil.rmtree(path)


def test_abandoned_growth_leaves_no_trace(tmp_path: Path, fresh: dict[str, bytes | None]) -> None:
    for at in range(0, number_of_calls(tmp_path, fresh), 3):
        path = tmp_path / str(at)
        restore(fresh, path)
        with pytest.raises(Killed):
            write_store(path, calls=KillingCalls(at))
        if len(Store.open(path).keys()) == 12:
            write_store(path, make_plan(range(4)), calls=WatchedCalls())
            assert snapshot(path) == fresh, at
        shutil.rmtree(path)


def test_restart_after_any_kill_equals_the_other_plan_alone(tmp_path: Path) -> None:
    other = make_plan(range(3), layers=[THINKER], integrity="12" * 16)
    write_store(tmp_path / "wanted", other)
    wanted = snapshot(tmp_path / "wanted")
    for at in range(0, number_of_calls(tmp_path, None), 3):
        path = tmp_path / str(at)
        with pytest.raises(Killed):
            write_store(path, make_plan(range(4)), calls=KillingCalls(at))
        if is_store(path):
            continue
        if (path / ".coterie.journal").exists():
            with pytest.raises(StoreError, match="another plan: the source differ"):
                StoreWriter.open(path, other)
        with StoreWriter.open(path, other, restart=True, calls=WatchedCalls()):
            pass
        write_store(path, other, calls=WatchedCalls())
        assert snapshot(path) == wanted, at


@pytest.mark.parametrize("growing", [False, True])
def test_power_cut_after_every_call(
    growing: bool, tmp_path: Path, fresh: dict[str, bytes | None], grown: dict[str, bytes | None]
) -> None:
    path = tmp_path / "store"
    if growing:
        restore(fresh, path)
    plan = make_plan(range(6 if growing else 4))
    calls = PowerCuts(path)
    write_store(path, plan, calls=calls)
    wanted = grown if growing else fresh
    assert len(calls.images) > 8
    assert calls.images[-1] == wanted
    for number, image in enumerate(calls.images):
        copy = tmp_path / str(number)
        restore(image, copy)
        if growing or is_store(copy):
            assert verify_store(copy).ok, number
        write_store(copy, plan, calls=WatchedCalls())
        assert snapshot(copy) == wanted, number
        shutil.rmtree(copy)


def test_finished_banks_are_not_redone(tmp_path: Path) -> None:
    plan = make_plan()
    with StoreWriter.open(tmp_path, plan) as writer:
        first, *rest = writer.missing_banks()
        write_bank(writer, first)
    with StoreWriter.open(tmp_path, plan) as writer:
        assert list(writer.missing_banks()) == rest
        assert writer.missing_experts(first) == ()


def test_a_bank_left_by_an_exception_is_missing(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, make_plan()) as writer:
        with pytest.raises(RuntimeError, match="mine"), writer.bank(THINKER):
            raise RuntimeError("mine")
        assert THINKER in writer.missing_banks()
        assert not list(tmp_path.rglob("*.partial"))
        write_bank(writer, THINKER)
        assert THINKER not in writer.missing_banks()


def test_writing_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    class Full(WatchedCalls):
        full = True

        def before(self, index: int, name: str, arguments: tuple[object, ...]) -> None:
            if name == "allocate" and arguments[1] == 49152 and self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    calls = Full()
    with StoreWriter.open(tmp_path, make_plan(), calls=calls) as writer:
        with pytest.raises(DiskSpaceError, match="no space is left") as caught:
            write_bank(writer, THINKER)
        assert caught.value.path == tmp_path / "experts/thinker/mlp-layer-000.safetensors"
        assert caught.value.needed == 49152
        calls.full = False
        write_bank(writer, THINKER)
    write_store(tmp_path)
    assert verify_store(tmp_path).ok


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_no_permission_says_what_to_do(code: int, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Make .* writable") as caught:
        write_store(tmp_path / "store", calls=FailingCalls(0, code))
    assert caught.value.path == tmp_path / "store"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_every_call_on_a_full_disk_is_a_disk_space_error(code: int, tmp_path: Path) -> None:
    for at in range(0, number_of_calls(tmp_path, None), 5):
        with pytest.raises(DiskSpaceError):
            write_store(tmp_path / str(at), make_plan(range(4)), calls=FailingCalls(at, code))


def test_short_writes_are_completed(tmp_path: Path, fresh: dict[str, bytes | None]) -> None:
    write_store(tmp_path / "store", make_plan(range(4)), calls=ShortWrites())
    assert snapshot(tmp_path / "store") == fresh
