"""Pieces of prompts in a directory: whole or not there, whoever dies or damages what; nobody else's; bounded."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from coterie.errors import CoterieError, DiskSpaceError, OutputError, UsageError
from coterie.generation import prefix_files
from coterie.generation.prefix_files import DamagedPieceError, PieceFacts
from coterie.generation.prefix_folder import PrefixFolder
from coterie.hf.cache_states import Stretch
from store.faults import FailingCalls, Killed, KillingCalls, PowerCuts, WatchedCalls, restore

MODEL = "ab" * 32
ROOT = "cd" * 32
TOKENS = 8
LIMIT = 1 << 20


def name(number: int, chain: int = 0) -> str:
    return f"{chain:032x}{number:032x}"


def facts(number: int, *, chain: int = 0, seconds: float = 1.5, root: str = ROOT) -> PieceFacts:
    after = name(number - 1, chain) if number else ""
    begin = number * TOKENS
    return PieceFacts(
        name=name(number, chain), after=after, root=root, model=MODEL, begin=begin, end=begin + TOKENS, seconds=seconds
    )


def piece(number: int, *, chain: int = 0, tokens: int = TOKENS) -> Stretch:
    made = torch.Generator().manual_seed(1000 * chain + number)
    whole = [torch.randn(1, 2, tokens, 4, generator=made).to(torch.bfloat16) for _ in range(2)]
    window = [torch.randn(1, 2, 3, 4, generator=made) for _ in range(2)]
    begin = number * TOKENS
    return Stretch(begin, begin + TOKENS, ((whole[0], whole[1]), None, (window[0], window[1])))


def same(ours: Stretch, theirs: Stretch) -> bool:
    return (ours.begin, ours.end) == (theirs.begin, theirs.end) and all(
        (one is None and other is None) or (one is not None and other is not None and all(map(torch.equal, one, other)))
        for one, other in zip(ours.layers, theirs.layers, strict=True)
    )


def read(folder: PrefixFolder, number: int, chain: int = 0) -> Stretch | None:
    begin = number * TOKENS
    found = folder.read(name(number, chain), model=MODEL, begin=begin, end=begin + TOKENS)
    return None if found is None else found[1]


def write_chain(folder: PrefixFolder, count: int = 3, **more: object) -> None:
    for number in range(count):
        folder.write(facts(number, **more), piece(number, chain=int(more.get("chain", 0))))  # type: ignore[arg-type]


def sound(folder: PrefixFolder, count: int = 3) -> list[bool]:
    """Which pieces are there; those that are, are what was written."""
    there = []
    for number in range(count):
        found = read(folder, number)
        assert found is None or same(found, piece(number))
        there.append(found is not None)
    return there


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


def test_what_was_written_is_what_is_read(path: Path) -> None:
    folder = PrefixFolder(path, LIMIT)
    write_chain(folder)
    for one in (folder, PrefixFolder(path, LIMIT)):
        assert sound(one) == [True] * 3
        assert (len(one), one.nbytes) == (3, sum(file.stat().st_size for file in files(path)))
    assert read(folder, 3) is None
    # Others may look into a file with what they have.
    with safe_open(files(path)[0], framework="pt") as stock:
        assert torch.equal(stock.get_tensor("0.keys"), piece(0).layers[0][0])
        assert stock.metadata()["format"] == "coterie-prefix"


def test_nobody_else_may_look(path: Path) -> None:
    before = os.umask(0)
    try:
        write_chain(PrefixFolder(path, LIMIT))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.lstat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_directory_that_is_not_ones_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir(0o755)
    (tmp_path / "own").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").touch(0o600)
    for bad, said in (("open", "chmod 700"), ("link", "symbolic link"), ("file", "not a directory")):
        with pytest.raises(UsageError) as caught:
            PrefixFolder(tmp_path / bad, LIMIT)
        assert said in f"{caught.value} {caught.value.advice}"
    with pytest.raises(OutputError):
        PrefixFolder(tmp_path / "no" / "where", LIMIT)
    with pytest.raises(UsageError):
        PrefixFolder(tmp_path / "own", 0)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(UsageError, match="another user"):
        PrefixFolder(tmp_path / "own", LIMIT)


def test_links_and_fifos_are_not_followed(path: Path, tmp_path: Path) -> None:
    folder = PrefixFolder(path, LIMIT)
    write_chain(folder)
    first, second, _ = (path / f"{name(number)}.safetensors" for number in range(3))
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    second.unlink()
    os.mkfifo(second)
    for number in (0, 1):
        with pytest.raises(OSError, match=r"link|FIFO"):
            read(folder, number)
    assert (tmp_path / "elsewhere").exists()


def damaged(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    place = rng.randrange(len(data))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + bytes(rng.randrange(1, 99))
    if kind == 2:
        end = min(len(data), place + rng.randrange(1, 64))
        return data[:place] + bytes(rng.randrange(256) for _ in range(end - place)) + data[end:]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("count", [60, pytest.param(6000, marks=pytest.mark.slow)])
def test_damage_is_never_taken_for_a_piece(count: int, path: Path) -> None:
    folder = PrefixFolder(path, LIMIT)
    write_chain(folder, 1)
    file = path / f"{name(0)}.safetensors"
    whole, rng = file.read_bytes(), random.Random(5)
    for number in range(count):
        wrong = damaged(whole, rng)
        if wrong == whole:
            continue
        file.write_bytes(wrong)
        with pytest.raises(DamagedPieceError):
            read(folder, 0)
        assert not file.exists(), number
    assert folder.damaged <= count
    # Found at the start, too, where the header is of no use.
    file.write_bytes(whole[:100])
    assert (len(PrefixFolder(path, LIMIT)), file.exists()) == (0, False)


def test_other_versions_names_and_models_are_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PrefixFolder(path, LIMIT)
    write_chain(folder, 1)
    file, other = (path / f"{name(0, chain)}.safetensors" for chain in (0, 1))
    shutil.copy(file, other)
    with pytest.raises(DamagedPieceError, match="another piece"):
        read(folder, 0, chain=1)
    for wrong in ({"model": "ef" * 32, "begin": 0, "end": 8}, {"model": MODEL, "begin": 0, "end": 9}):
        write_chain(folder, 1)
        with pytest.raises(DamagedPieceError, match="another piece"):
            folder.read(name(0), **wrong)  # type: ignore[arg-type]
        assert not file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(prefix_files, "VERSION", "2")
        write_chain(folder, 1)
    with pytest.raises(DamagedPieceError, match="version"):
        read(folder, 0)


def test_without_its_secret_a_directory_is_empty(path: Path) -> None:
    folder = PrefixFolder(path, LIMIT)
    digests = folder.digest(b"one"), folder.digest(b"o", b"ne"), folder.slow_digest("anna")
    assert len({*digests}) == 3
    again = PrefixFolder(path, LIMIT)
    assert digests == (again.digest(b"one"), again.digest(b"o", b"ne"), again.slow_digest("anna"))
    write_chain(folder)
    (path / "secret").write_bytes(b"short")
    other = PrefixFolder(path, LIMIT)
    assert other.digest(b"one") != digests[0]
    assert files(path) == []


def each_nbytes(path: Path) -> int:
    folder = PrefixFolder(path.with_name("measured"), LIMIT)
    return folder.write(facts(0), piece(0))


def test_what_saves_least_for_its_bytes_and_time_goes_first(path: Path) -> None:
    each = each_nbytes(path)
    folder = PrefixFolder(path, 4 * each)
    for chain, seconds in ((0, 9.0), (1, 1.0), (2, 9.0)):
        folder.write(facts(0, chain=chain, seconds=seconds), piece(0, chain=chain))
    folder.write(facts(1, chain=0, seconds=9.0), piece(1))
    before = time.time_ns() - 3600 * 10**9
    for chain in (0, 1, 2):
        os.utime(path / f"{name(0, chain)}.safetensors", ns=(before, before))
    folder = PrefixFolder(path, 4 * each)

    def there() -> set[str]:
        return {file.stem for file in files(path)}

    folder.write(facts(0, chain=3), piece(0, chain=3))
    assert there() == {name(0), name(1), name(0, 2), name(0, 3)}, "the one that was computed soonest"
    assert folder.use(name(0, 2))
    folder.write(facts(0, chain=4), piece(0, chain=4))
    # What was used longest ago is followed by another, which would be lost with it.
    assert name(0) in there()
    assert folder.nbytes <= folder.limit
    # One that is larger than all may be is not kept, and nothing goes for it.
    kept = there()
    assert folder.write(facts(0, chain=5), piece(0, chain=5, tokens=9000)) == 0
    assert there() == kept
    # Nor one that nobody would come to.
    assert folder.write(facts(7, chain=6), piece(7, chain=6)) == 0


def test_what_follows_a_piece_that_is_gone_goes(path: Path) -> None:
    write_chain(PrefixFolder(path, LIMIT))
    (path / f"{name(0)}.safetensors").unlink()
    assert len(PrefixFolder(path, LIMIT)) == 0
    assert files(path) == []


def test_one_beginning_is_forgotten_without_the_others(path: Path) -> None:
    folder = PrefixFolder(path, LIMIT)
    write_chain(folder)
    write_chain(folder, chain=1, root="99" * 32)
    folder.forget(ROOT)
    assert sound(folder) == [False] * 3
    assert len(folder) == 3
    folder.forget()
    assert files(path) == []


def calls_of(path: Path) -> int:
    calls = WatchedCalls()
    write_chain(PrefixFolder(path, LIMIT, calls=calls), 2)
    return calls.count


def test_a_call_that_fails_harms_nothing(path: Path, tmp_path: Path) -> None:
    total = calls_of(path)
    assert total > 15
    for at in range(total):
        own = tmp_path / str(at)
        try:
            folder = PrefixFolder(own, LIMIT, calls=FailingCalls(at, errno.EIO))
        except CoterieError:
            folder = PrefixFolder(own, LIMIT, calls=WatchedCalls())
        for number in range(3):
            try:
                folder.write(facts(number), piece(number))
            except (CoterieError, OSError):
                assert sum(sound(folder)) <= number + 1
        write_chain(folder)
        assert sound(folder) == [True] * 3
        shutil.rmtree(own)


def test_a_full_disk_is_told_as_one(path: Path) -> None:
    PrefixFolder(path, LIMIT)
    calls = FailingCalls(4, errno.ENOSPC)
    folder = PrefixFolder(path, LIMIT, calls=calls)
    found = []
    for at in range(calls.count, calls.count + 5):
        calls.at = at
        try:
            folder.write(facts(0), piece(0))
        except DiskSpaceError as error:
            found.append(error)
        assert [one.name for one in path.iterdir() if one.name.endswith(".partial")] == []
        folder.forget()
    assert len(found) >= 3


def close_below(path: Path) -> None:
    """Closes what is still open there, as the end of a process does."""
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if one.readlink().is_relative_to(path):
                os.close(int(one.name))


def test_killed_at_any_call_leaves_whole_pieces(path: Path, tmp_path: Path) -> None:
    for at in range(calls_of(path)):
        own = tmp_path / str(at)
        with pytest.raises(Killed):
            write_chain(PrefixFolder(own, LIMIT, calls=KillingCalls(at)), 2)
        close_below(own)
        folder = PrefixFolder(own, LIMIT, calls=WatchedCalls())
        assert folder.damaged == 0
        there = sound(folder)
        assert there == sorted(there, reverse=True)
        assert {one.name for one in own.iterdir()} == {"secret", *(file.name for file in files(own))}
        write_chain(folder)
        assert sound(folder) == [True] * 3
        shutil.rmtree(own)


def test_a_power_cut_leaves_whole_pieces(path: Path, tmp_path: Path) -> None:
    path.mkdir(0o700)
    calls = PowerCuts(path)
    write_chain(PrefixFolder(path, LIMIT, calls=calls))
    assert len(calls.images) >= 5
    for number, image in enumerate(calls.images):
        copy = tmp_path / str(number)
        restore(image, copy)
        copy.chmod(0o700)
        folder = PrefixFolder(copy, LIMIT, calls=WatchedCalls())
        assert folder.damaged == 0
        there = sound(folder)
        assert there == sorted(there, reverse=True)
        shutil.rmtree(copy)


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from generation.test_prefix_folder import *
folder = PrefixFolder(sys.argv[1], LIMIT)
print("ready", flush=True)
while True:
    write_chain(folder)
    folder.forget()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_pieces(path: Path) -> None:
    rng = random.Random(7)
    for _ in range(30):
        tests = str(Path(__file__).parents[1])
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), tests], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        folder = PrefixFolder(path, LIMIT)
        assert folder.damaged == 0
        sound(folder)
        assert {one.name for one in path.iterdir()} == {"secret", *(file.name for file in files(path))}


def test_several_may_use_one_directory(path: Path) -> None:
    each = each_nbytes(path)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            folder = PrefixFolder(path, 6 * each)
            for _ in range(15):
                chain = rng.randrange(4)
                write_chain(folder, chain=chain)
                found = read(folder, rng.randrange(3), chain)
                assert found is None or same(found, piece(found.begin // TOKENS, chain=chain))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    folder = PrefixFolder(path, 6 * each)
    assert folder.damaged == 0
    assert len(folder) > 0
    assert {one.name for one in path.iterdir()} == {"secret", *(file.name for file in files(path))}
