"""Recording: the model's thread never waits, and what was killed goes on."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from coterie.errors import ProfileError, ProfileIdentityError, ProfileWriteError
from coterie.profiles import Mark, Profile, ProfileDatabase, Recording, RunFacts, rank_experts, resumable
from coterie.profiles import recording as module
from coterie.profiles.recording import mark_key
from profiles.contents import contents
from profiles.synthetic import Router, run_facts, shapes

BANKS = shapes()
DOCUMENTS = [f"documents/{n}.txt" for n in range(12)]


def record(recording: Recording, names: list[str] = DOCUMENTS, *, router: Router | None = None) -> None:
    """Records documents of two windows each; each is the same whenever it is recorded."""
    group = recording.group("text", "code", "prompt")
    for name in names:
        windows = [
            list((router or Router()).document(np.random.default_rng([DOCUMENTS.index(name), window]), "code", 40))
            for window in range(2)
        ]
        for window in range(recording.progress(name).position, 2):
            token_ids = np.arange(40) % 7
            for shape, (ids, weights) in zip(BANKS, windows[window], strict=True):
                recording.add(shape.bank, ids, weights, None, group, token_ids)
            recording.mark(name, window + 1, done=window == 1)


def test_a_recording_ends_up_in_the_profile(place, monkeypatch) -> None:
    # However slow the disk is, no segment has to wait for it and become longer.
    monkeypatch.setattr(module, "_WAITING", 100)
    run = run_facts(label="mine")
    with ProfileDatabase(place, create=True) as database:
        with Recording(database, run, segment_tokens=100) as recording:
            record(recording, router=Router(planted={(0, "code"): (3,)}))
            assert recording.nbytes > 0
            assert recording.error is None
        assert recording.tokens == 0
        # A hundred tokens are reached with every third window.
        assert sorted(database.digests(run.uuid)) == list(range(8))
        assert database.marks(run.uuid)[mark_key(DOCUMENTS[0])] == Mark(mark_key(DOCUMENTS[0]), 2, True)
        assert int(database.vocabulary(run.uuid).totals["text", "mlp"].counts.sum()) == 24 * 40
        profile = Profile.read(database)
        assert profile.domains == {"code": 24 * 40}
        best = rank_experts(profile, domain="code").experts[0]
        assert (best.layer, best.expert_id, best.specialist, best.others) == (0, 3, True, None)


def test_segments_end_where_the_caller_says(tmp_path) -> None:
    run = run_facts()
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        with Recording(database, run, segment_tokens=10, vocabulary=0, pairs=False) as recording:
            group = recording.group("text", "code", "generated")
            ids, weights = np.array([[0, 1]], np.uint16), np.ones((1, 2), np.float32)
            for step in range(25):
                recording.boundary()
                for shape in BANKS:
                    recording.add(shape.bank, ids, weights, None, group)
                assert recording.tokens == step % 10 + 1
        segments = list(database.segments(run.uuid))
        assert [segment.tokens for segment in segments] == [10, 10, 5]
        assert all(bank.pairs is None for segment in segments for bank in segment.banks)
        assert not database.vocabulary(run.uuid).banks
        recording.close()
        assert len(database.digests(run.uuid)) == 3


def killed(path: Path, after: int) -> None:
    """A process that is killed in its middle, with a segment in work."""
    with ProfileDatabase(path, create=True) as database:
        recording = Recording(database, resumable(database, identity=run_facts().identity, label="files") or labelled())
        recording._segment_tokens = 100
        record(recording, DOCUMENTS[:after])
        while not recording._queue.empty():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def labelled() -> RunFacts:
    return run_facts(label="files")


def test_a_run_that_was_killed_goes_on_and_counts_nothing_twice(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    for after in (5, 9):
        process = context.Process(target=killed, args=(tmp_path / "p.db", after))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    with ProfileDatabase(tmp_path / "p.db") as database, ProfileDatabase(tmp_path / "q.db", create=True) as other:
        run = resumable(database, identity=run_facts().identity, label="files")
        assert run is not None
        assert 0 < len(database.digests(run.uuid)) < 8
        with Recording(database, run, segment_tokens=100) as recording:
            record(recording)
        with Recording(other, labelled(), segment_tokens=100) as recording:
            record(recording)
        resumed, whole = Profile.read(database), Profile.read(other)
        assert len(resumed.runs) == 1
        for key, table in whole.banks.items():
            found = resumed.banks[key]
            assert found.tokens.sum() == table.tokens.sum() == 24 * 40
            assert (found.activations.sum(axis=0) == table.activations.sum(axis=0)).all()
            assert found.gate_mass.sum(axis=0) == pytest.approx(table.gate_mass.sum(axis=0))
        assert all(mark.done for mark in database.marks(run.uuid).values())


def test_runs_to_go_on_with_are_found_by_label_and_model(tmp_path) -> None:
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        run = labelled()
        assert resumable(database, identity=run.identity, label="files") is None
        database.add_run(run)
        assert resumable(database, identity=run.identity, label="files") == run
        assert resumable(database, identity="f" * 32, label="others") is None
        with pytest.raises(ProfileIdentityError, match=r"The run 'files' in .* is of the model 0123.*, not of ffff"):
            resumable(database, identity="f" * 32, label="files")


class Moody(ProfileDatabase):
    """A database that refuses, or makes wait, when it is told to."""

    refuses = False

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    @contextmanager
    def writing(self):
        self.reached.set()
        assert self.gate.wait(60)
        if self.refuses:
            raise ProfileWriteError("No room.", advice="Make some.", path="p")
        with super().writing() as connection:
            yield connection


def test_a_database_that_hangs_does_not_stop_the_model(tmp_path) -> None:
    run = run_facts()
    with Moody(tmp_path / "p.db", create=True) as database:
        recording = Recording(database, run, segment_tokens=40)
        database.gate.clear()
        database.reached.clear()
        held = recording.nbytes
        # Had it to wait for the database, it would stay here for a minute and fail.
        record(recording, DOCUMENTS[:1])
        assert database.reached.wait(60)
        record(recording, DOCUMENTS[1:])
        recording.boundary()
        assert recording.nbytes <= 2 * held
        # Some segments wait and one is being written; the one in work has the rest, far more than 40 tokens.
        assert recording.tokens > 10 * 40
        database.gate.set()
        recording.close()
        assert Profile.read(database).tokens == 24 * 40


def test_a_database_that_refuses_is_tried_again(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.01)
    run = run_facts()
    with Moody(tmp_path / "p.db", create=True) as database:
        recording = Recording(database, run, segment_tokens=40)
        database.refuses = True
        record(recording)
        while recording.error is None:
            threading.Event().wait(0.01)
        assert "No room" in str(recording.error)
        assert "Recording goes on" in caplog.text
        database.refuses = False
        recording.close()
        assert recording.error is None
        assert Profile.read(database).tokens == 24 * 40


def test_what_could_not_be_written_is_said_at_the_end(tmp_path) -> None:
    run = run_facts()
    with Moody(tmp_path / "p.db", create=True) as database:
        recording = Recording(database, run, segment_tokens=10**6)
        record(recording, DOCUMENTS[:2])
        database.refuses = True
        with pytest.raises(ProfileWriteError, match=r"No room\. 160 tokens of run .* not written\. Make some\."):
            recording.close()
        recording.close()


def fail_while_recording(database: Moody) -> None:
    with Recording(database, run_facts()) as recording:
        record(recording, DOCUMENTS[:1])
        database.refuses = True
        raise ZeroDivisionError


def test_what_went_wrong_first_matters_more(tmp_path) -> None:
    with Moody(tmp_path / "p.db", create=True) as database, pytest.raises(ZeroDivisionError):
        fail_while_recording(database)


def test_whatever_goes_wrong_in_the_writer_is_an_error_of_the_profile(tmp_path, monkeypatch) -> None:
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        recording = Recording(database, run_facts())
        record(recording, DOCUMENTS[:1])
        monkeypatch.setattr(database, "write_segment", lambda *_, **__: 1 / 0)
        with pytest.raises(ProfileError, match="ZeroDivisionError"):
            recording.close()


def test_two_recorders_of_one_run_do_not_mix(tmp_path) -> None:
    run = run_facts()
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        one, two = (Recording(database, run, segment_tokens=10**6) for _ in range(2))
        record(one, DOCUMENTS[:3])
        record(two, DOCUMENTS[:2])
        one.close()
        before = contents(database)
        with pytest.raises(ProfileWriteError, match="another process records it"):
            two.close()
        assert contents(database) == before


def test_names_of_inputs_are_not_kept(tmp_path) -> None:
    with ProfileDatabase(tmp_path / "p.db", create=True) as database, Recording(database, run_facts()) as recording:
        record(recording, DOCUMENTS[:1])
    content = (tmp_path / "p.db").read_bytes()
    assert mark_key(DOCUMENTS[0]).encode() in content
    assert b"documents" not in content
