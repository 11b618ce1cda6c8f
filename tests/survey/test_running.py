"""A survey counts every token of its material once, whatever happens in between."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.errors import InputError, ReadError, UnsupportedError, UsageError
from coterie.files.text import text_parts
from coterie.generation.opened import OpenModel
from coterie.hf.tokenizer import encode_text
from coterie.profiles import Group, Profile, ProfileDatabase, Recording
from coterie.survey import Material, gather, steps, survey
from zoo.tokenizer import add_tokenizer


@pytest.fixture
def opened(readable, open_model) -> OpenModel:
    return OpenModel.of(open_model(readable))


def read(path: Path) -> Profile:
    with ProfileDatabase(path) as database:
        return Profile.read(database)


def totals(profile: Profile) -> dict[Any, Any]:
    """All counters, added up over segments."""
    found: dict[Any, Any] = {}
    for bank, table in profile.banks.items():
        for row, group in enumerate(table.groups.tolist()):
            names = ("tokens", "activations", "gate_mass", "reap_sum", "reap_counts", "entropy_sum")
            key, values = (bank, profile.groups[group]), [np.asarray(getattr(table, name)[row]) for name in names]
            found[key] = [a + b for a, b in zip(found[key], values, strict=True)] if key in found else values
    return found


def assert_same(profile: Profile, other: Profile) -> None:
    ours, theirs = totals(profile), totals(other)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        for a, b in zip(values, theirs[key], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def count(opened: OpenModel, path: Path) -> int:
    return len(encode_text(opened.processors.tokenizer, path.read_text()))


def stopping_after(calls: int) -> Any:
    ticks: Iterator[int] = iter(range(10**9))
    return lambda: next(ticks) >= calls


def test_every_token_is_counted_once(opened, words, tmp_path):
    files = {"code": words(700, seed=1), "law": words(90, "law.txt", seed=2)}
    material = [one for domain, path in files.items() for one in gather("text", domain, path)]
    told: list[int] = []
    found = survey(opened, tmp_path / "p.db", material, context=64, progress=told.append)
    wanted = {domain: count(opened, path) for domain, path in files.items()}
    assert {group.domain: tokens for group, tokens in found.tokens} == wanted
    assert (found.files, found.finished, found.interrupted, found.label) == (2, 2, False, "survey")
    assert sum(told) == sum(one.nbytes for one in material)
    assert min(told) >= 0
    profile = read(tmp_path / "p.db")
    assert profile.domains == wanted
    assert (found.run, found.identity) == (profile.runs[0].uuid, profile.identity)
    for table in profile.banks.values():
        assert table.activations.sum() == table.reap_counts.sum() == 2 * sum(wanted.values())


def test_windows_are_what_a_forward_pass_of_them_routes(opened, words, tmp_path):
    import torch

    path = words(150)
    ids = encode_text(opened.processors.tokenizer, path.read_text())
    with opened.runtime.record_profile(tmp_path / "by-hand.db", domain="d"), torch.no_grad():
        for begin in range(0, len(ids), 48):
            opened.model(input_ids=torch.tensor([ids[begin : begin + 48]]))
    survey(opened, tmp_path / "p.db", gather("text", "d", path), context=48)
    assert_same(read(tmp_path / "p.db"), read(tmp_path / "by-hand.db"))


@pytest.mark.parametrize("calls", [0, 1, 5, 12])
def test_a_survey_that_was_stopped_goes_on(calls, opened, words, tmp_path):
    material = gather("text", "a", words(400, "a.txt")) + gather("text", "b", words(300, "b.txt", seed=1))
    whole = survey(opened, tmp_path / "whole.db", material, context=64)
    stopped = survey(opened, tmp_path / "p.db", material, context=64, should_stop=stopping_after(calls))
    assert stopped.interrupted
    assert stopped.finished == 0 if calls <= 5 else stopped.finished < 2
    told: list[int] = []
    rest = survey(opened, tmp_path / "p.db", material, context=64, progress=told.append)
    assert (rest.interrupted, rest.finished, rest.run) == (False, 2, stopped.run)
    assert sum(told) == sum(one.nbytes for one in material)
    together = dict.fromkeys(dict(whole.tokens), 0)
    for group, tokens in [*stopped.tokens, *rest.tokens]:
        together[group] += tokens
    assert together == dict(whole.tokens)
    assert_same(read(tmp_path / "p.db"), read(tmp_path / "whole.db"))
    again = survey(opened, tmp_path / "p.db", material, context=64)
    assert (again.tokens, again.finished) == ((), 2)


def test_what_was_not_written_before_a_crash_is_recorded_again(opened, words, tmp_path, monkeypatch):
    """As after a kill: what is in the database is all that is left."""
    material = gather("text", "a", words(3000, "a.txt")) + gather("text", "b", words(500, "b.txt", seed=1))
    survey(opened, tmp_path / "whole.db", material, context=64)
    marks = iter(range(10**6))
    mark = Recording.mark

    def crash(self: Recording, *args: Any, **options: Any) -> None:
        mark(self, *args, **options)
        if next(marks) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "mark", crash)
        patch.setattr(Recording, "_parcel", parcels_until_closed(Recording._parcel))
        with pytest.raises(KeyboardInterrupt):
            survey(opened, tmp_path / "p.db", material, context=64)
    before = read(tmp_path / "p.db").tokens
    assert 1024 <= before < 31 * 64
    survey(opened, tmp_path / "p.db", material, context=64)
    profile, whole = read(tmp_path / "p.db"), read(tmp_path / "whole.db")
    assert_same(profile, whole)
    assert len(profile.segments) == len(whole.segments)


def parcels_until_closed(parcel: Any) -> Any:
    """At the end nothing more is written, as if there had been no end."""

    @functools.wraps(parcel)
    def lost(self: Recording, *, final: bool) -> Any:
        found = parcel(self, final=final)
        return type(found)(None, (), None) if final else found

    return lost


_KILLED = """
import os, signal, sys
from coterie.engine import load
from coterie.generation.opened import OpenModel
from coterie.profiles import ProfileDatabase
from coterie.survey import gather, survey
write = ProfileDatabase.write_segment
def killed(self, *args, **options):
    write(self, *args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
ProfileDatabase.write_segment = killed
opened = OpenModel.of(load(sys.argv[1], expert_memory="100%"))
survey(opened, sys.argv[3], gather("text", "a", sys.argv[2]), context=64)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_counters(readable, opened, words, tmp_path):
    path = words(5000)
    survey(opened, tmp_path / "whole.db", gather("text", "a", path), context=64)
    command = [sys.executable, "-c", _KILLED, str(readable), str(path), str(tmp_path / "p.db")]
    for _ in range(2):
        assert subprocess.run(command, capture_output=True, check=False, timeout=240).returncode == -9
    survey(opened, tmp_path / "p.db", gather("text", "a", path), context=64)
    assert_same(read(tmp_path / "p.db"), read(tmp_path / "whole.db"))


def test_files_of_many_parts(opened, words, tmp_path, monkeypatch):
    path = words(300)
    material = gather("text", "d", path)
    monkeypatch.setattr(steps, "text_parts", functools.partial(text_parts, characters=100))
    told: list[int] = []
    stopped = survey(opened, tmp_path / "p.db", material, context=32, should_stop=stopping_after(8))
    assert stopped.interrupted
    survey(opened, tmp_path / "p.db", material, context=32, progress=told.append)
    assert read(tmp_path / "p.db").domains == {"d": count(opened, path)}
    assert sum(told) == material[0].nbytes


def test_a_limit_may_be_raised_later(opened, words, tmp_path):
    path = words(300)
    material = gather("text", "d", path)
    for limit, tokens in ((50, 50), (50, 50), (130, 130), (None, count(opened, path))):
        survey(opened, tmp_path / "p.db", material, context=64, limit=limit)
        assert read(tmp_path / "p.db").tokens == tokens


def test_more_files_and_other_domains_may_be_added(opened, words, tmp_path):
    first, second = words(100, "1.txt"), words(60, "2.txt", seed=1)
    survey(opened, tmp_path / "p.db", gather("text", "a", first))
    material = gather("text", "a", first) + gather("text", "b", first) + gather("text", "b", second)
    survey(opened, tmp_path / "p.db", [*material, *material])
    one, two = count(opened, first), count(opened, second)
    assert read(tmp_path / "p.db").domains == {"a": one, "b": one + two}


def test_media_are_prompts_by_themselves(open_model, bundled, tmp_path):
    opened = OpenModel.of(open_model("bundled", component="thinker"))
    samples = bundled / "samples"
    material = gather("images", "pictures", samples) + gather("speech", "sounds", samples)
    found = survey(opened, tmp_path / "p.db", material)
    assert (found.files, found.finished) == (2, 2)
    tokens = dict(found.tokens)
    for modality, domain in (("image", "pictures"), ("audio", "sounds")):
        assert tokens[Group(modality, domain, "prompt")] > 0
        assert tokens[Group("text", domain, "prompt")] > 0  # the tokens around it
    assert survey(opened, tmp_path / "p.db", material).tokens == ()


def test_a_model_that_takes_no_such_media(opened, data, words, tmp_path):
    material = gather("text", "d", words(80)) + gather("images", "pictures", data / "sandal.png")
    with pytest.raises(InputError, match=r"sandal\.png: .*does not take pictures"):
        survey(opened, tmp_path / "p.db", material)
    assert list(read(tmp_path / "p.db").domains) == ["d"]  # what came before is kept


def test_a_file_that_changes_into_something_else(opened, tmp_path):
    path = tmp_path / "late.txt"
    path.write_text("w3 w4 w5 " * 40000)
    material = gather("text", "d", path)
    with path.open("ab") as file:
        file.write(b"\xff\xfe")
    with pytest.raises(InputError, match=r"late\.txt is not UTF-8"):
        survey(opened, tmp_path / "p.db", material, limit=None, context=256, should_stop=stopping_after(10**9))


def test_an_error_of_a_pass_names_the_file(opened, words, tmp_path, monkeypatch):
    material = gather("text", "d", words(80))

    def fail(*args: Any, **options: Any) -> None:
        raise ReadError("The disk is gone.", advice="Look for it.")

    monkeypatch.setitem(opened.model.__dict__, "forward", fail)
    with pytest.raises(ReadError, match=r"words\.txt: The disk is gone"):
        survey(opened, tmp_path / "p.db", material)


def test_what_is_asked_wrongly(opened, words, tmp_path, zoo_checkpoint, open_model):
    material = gather("text", "d", words(20))
    for options, message in (
        ({"context": 10**6}, "was made for"),
        ({"context": 0}, "too small"),
        ({"limit": 0}, "too small"),
    ):
        with pytest.raises(UsageError, match=message):
            survey(opened, tmp_path / "p.db", material, **options)
    with pytest.raises(UsageError, match="nothing to run"):
        survey(opened, tmp_path / "p.db", [])
    assert not (tmp_path / "p.db").exists()


def test_an_encoder_with_a_decoder_is_not_surveyed(words, tmp_path, open_model):
    from zoo.undecorated import UNDECORATED

    UNDECORATED["switch_transformers"].build().save_pretrained(tmp_path / "model")
    add_tokenizer(tmp_path / "model", chat=False)
    opened = OpenModel.of(open_model(tmp_path / "model"))
    with pytest.raises(UnsupportedError, match="does not read texts"):
        survey(opened, tmp_path / "p.db", gather("text", "d", words(20)))


# --- material ---------------------------------------------------------------------------------------------------------


def test_places(words, tmp_path):
    for name in ("notes/a.md", "notes/deep/b.py", "notes/.hidden/c.txt", "notes/.d.txt"):
        words(20, name)

    def found(place: object) -> list[str]:
        return [one.path.relative_to(tmp_path).as_posix() for one in gather("text", "d", place)]

    assert found(tmp_path / "notes") == ["notes/a.md", "notes/deep/b.py"]
    assert found(tmp_path / "notes" / "**" / "*.py") == ["notes/deep/b.py"]
    assert found(tmp_path / "notes" / "a.md") == ["notes/a.md"]
    one = gather("text", "d", tmp_path / "notes" / "a.md")[0]
    assert one == Material(kind="text", domain="d", path=one.path, nbytes=one.path.stat().st_size)


def test_sounds_and_pictures_are_known_by_their_endings(data, tmp_path):
    shutil.copytree(
        data, tmp_path / "data", ignore=lambda at, names: [one for one in names if (Path(at) / one).is_dir()]
    )
    (tmp_path / "data" / "labels.tsv").write_text("x")
    assert [one.path.name for one in gather("speech", "d", tmp_path / "data")] == ["dog.wav", "go.wav"]
    pictures = [one.path.name for one in gather("images", "d", tmp_path / "data")]
    assert pictures == ["ankle-boot.png", "sandal.png"]


def test_places_without_material(words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    for place, message in (
        ("nowhere", "There is no file"),
        ("empty", "There is no file"),
        ("nothing.txt", "is empty"),
        ("latin.txt", "is not UTF-8"),
        ("*.md", "There is no file"),
    ):
        with pytest.raises(InputError, match=message):
            gather("text", "d", tmp_path / place)
    with pytest.raises(InputError, match=r"endings \.wav"):
        gather("speech", "d", tmp_path / "empty")
    with pytest.raises(UsageError, match="images"):
        gather("image", "d", words(10))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name of a domain"):
        gather("text", "", words(10))
