"""Recording from the command line: `profile record`, and `--record-profile` of generate and chat."""

import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest

import coterie as coterie_package
from coterie.profiles import Profile, ProfileDatabase

SAMPLES = Path(coterie_package.__file__).parent / "bundled" / "samples"
FAST = ("--expert-memory", "100%")


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, count in (("a.txt", 120), ("b.md", 60)):
        (folder / name).write_text(" ".join(f"w{3 + n % 90}" for n in range(count)))
    return folder


def read(path: object) -> Profile:
    with ProfileDatabase(str(path)) as database:
        return Profile.read(database)


def test_records_files_and_goes_on(coterie, model, texts, tmp_path) -> None:
    command = ("profile", "record", model, "-o", str(tmp_path / "p.db"), *FAST)
    outcome = coterie(*command, "--text", f"one={texts / 'a.txt'}", "--text", f"two={texts}/*.md", "--context", "32")
    assert outcome.code == 0, outcome.err
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["modality", "domain", "phase", "tokens"],
        ["text", "one", "prompt", "120"],
        ["text", "two", "prompt", "60"],
    ]
    assert "2 of 2 files" in outcome.err
    outcome = coterie(*command, "-t", f"one={texts / 'a.txt'}", "-t", f"three={texts}", "--json")
    found = json.loads(outcome.out)
    assert found["tokens"] == [{"modality": "text", "domain": "three", "phase": "prompt", "tokens": 180}]
    assert (found["files"], found["finished"], found["interrupted"], found["label"]) == (3, 3, False, "survey")
    profile = read(tmp_path / "p.db")
    assert profile.domains == {"one": 120, "two": 60, "three": 180}
    assert len(profile.runs) == 1
    again = coterie(*command, "-t", f"one={texts / 'a.txt'}")
    assert (again.code, again.out) == (0, "")
    assert "is recorded under the label 'survey' already" in again.err
    assert coterie(*command, "-t", f"one={texts / 'a.txt'}", "--label", "other", "-q").code == 0
    assert len(read(tmp_path / "p.db").runs) == 2


def test_options_for_what_is_kept(coterie, model, texts, tmp_path) -> None:
    command = ("profile", "record", model, "--db", str(tmp_path / "p.db"), "-t", f"d={texts}", *FAST)
    assert coterie(*command, "--no-contributions", "--vocabulary", "0", "--max-tokens-per-file", "50").code == 0
    profile = read(tmp_path / "p.db")
    assert profile.tokens == 100
    assert not any(table.reap_counts.any() for table in profile.banks.values())
    with ProfileDatabase(tmp_path / "p.db") as database:
        assert not database.vocabulary(profile.runs[0].uuid).totals


def test_ctrl_c_stops_between_windows(coterie, model, texts, tmp_path, monkeypatch) -> None:
    from coterie.profiles import Recording

    mark = Recording.mark

    def press(self: Recording, *args: object, **options: object) -> None:
        mark(self, *args, **options)
        os.kill(os.getpid(), signal.SIGINT)

    command = ("profile", "record", model, "-o", str(tmp_path / "p.db"), "-t", f"d={texts}", "--context", "40", *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(Recording, "mark", press)
        outcome = coterie(*command)
    assert outcome.code == 130
    assert "0 of 2 files are recorded. The same command goes on." in outcome.err
    assert read(tmp_path / "p.db").tokens == 40
    assert coterie(*command).code == 0
    assert read(tmp_path / "p.db").domains == {"d": 180}


def test_sounds_and_pictures(coterie, tmp_path) -> None:
    outcome = coterie(
        "profile", "record", "bundled", "-o", str(tmp_path / "p.db"), *FAST,
        "--speech", str(SAMPLES), "--images", f"things={SAMPLES / 'sandal.png'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    groups = {(group.modality, group.domain) for group in read(tmp_path / "p.db").groups}
    assert groups == {("audio", "speech"), ("text", "speech"), ("image", "things"), ("text", "things")}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "nothing to run the model over"),
        (("--text", "{texts}"), 2, "names no domain"),
        (("--text", "d=nowhere"), 1, "There is no file"),
        (("--text", "={texts}"), 2, "name of a domain"),
        (("--speech", "{texts}"), 1, "endings .wav"),
        (("--txt", "d={texts}"), 2, "--text"),
        (("--text", "d={texts}", "--context", "1000000"), 2, "was made for"),
        (("--images", "{pictures}"), 1, "does not take pictures"),
        (("--text", "d={texts}", "-o", "{texts}/a.txt"), 1, "is not a profile"),
        (("--text", "d={texts}", "-o", "{texts}/nowhere/p.db"), 1, "There is no directory"),
    ],
)
def test_what_is_asked_wrongly_is_told(options, code, message, coterie, model, texts, tmp_path) -> None:
    given = [option.format(texts=texts, pictures=SAMPLES) for option in options]
    db = () if "-o" in given else ("-o", str(tmp_path / "p.db"))
    outcome = coterie("profile", "record", model, *db, *given, *FAST)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err


def test_generate_records_a_profile(coterie, model, tmp_path) -> None:
    plain = coterie("generate", model, "w3 w4 w5", "-n", "6", "--greedy", *FAST)
    options = ("--record-profile", str(tmp_path / "p.db"), "--domain", "stories")
    outcome = coterie("generate", model, "w3 w4 w5", "-n", "6", "--greedy", *FAST, *options)
    assert (outcome.code, outcome.out) == (0, plain.out)
    profile = read(tmp_path / "p.db")
    found = {group.phase: tokens for group, tokens in profile.group_tokens.items()}
    assert found == {"prompt": 3, "generated": 5}
    assert profile.domains == {"stories": 8}
    assert all(table.reap_counts.any() for table in profile.banks.values())
    coterie("generate", model, "w3 w4 w5", "-n", "6", "--greedy", *FAST, *options[:2])
    assert read(tmp_path / "p.db").domains == {"stories": 8, "unsorted": 8}


def test_chat_records_a_profile(coterie, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w4\nw5\n"))
    options = ("--record-profile", str(tmp_path / "p.db"), "--domain", "talk", "--greedy", "-n", "4")
    outcome = coterie("chat", model, *FAST, *options)
    assert outcome.code == 0, outcome.err
    profile = read(tmp_path / "p.db")
    assert profile.group_tokens
    assert {group.phase for group in profile.group_tokens} == {"prompt", "generated"}
    assert set(profile.domains) == {"talk"}


@pytest.mark.parametrize("command", [("generate",), ("chat",)])
def test_a_domain_needs_a_profile(command, coterie, model, tmp_path) -> None:
    outcome = coterie(*command, model, "--domain", "code")
    assert (outcome.code, "--record-profile" in outcome.err) == (2, True)
    outcome = coterie(*command, model, "--domain", " ", "--record-profile", str(tmp_path / "p.db"))
    assert (outcome.code, "not the name of a domain" in outcome.err) == (2, True)
    assert not (tmp_path / "p.db").exists()


def test_a_database_that_stays_locked_does_not_keep_generation_waiting(coterie, model, tmp_path, monkeypatch) -> None:
    """The text is out before the database lets anybody write."""
    free, write = threading.Event(), ProfileDatabase.write_segment
    out: list[str] = []

    def wait(self: ProfileDatabase, *args: object, **options: object) -> None:
        assert free.wait(120)
        write(self, *args, **options)

    monkeypatch.setattr(ProfileDatabase, "write_segment", wait)
    monkeypatch.setattr("coterie.cli.answer.write_text", lambda text: (out.append(text), free.set()))
    outcome = coterie("generate", model, "w3 w4", "-n", "4", *FAST, "--record-profile", str(tmp_path / "p.db"))
    assert outcome.code == 0
    assert out
    assert read(tmp_path / "p.db").tokens == 5


def test_a_cluster_is_asked_for_with_all_that_it_needs(coterie, model, texts, tmp_path, monkeypatch) -> None:
    from coterie.cluster import connection

    command = ("profile", "record", model, "-o", str(tmp_path / "p.db"), "-t", f"d={texts}", "--ray", "local")
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    outcome = coterie(*command, "--memory", "1GiB")
    assert outcome.code == 1
    assert "Workers of a cluster need ray, which is not installed. Install it: pip install" in outcome.err
    monkeypatch.setattr(connection, "find_spec", lambda name: object())
    outcome = coterie(*command)
    assert outcome.code == 2
    assert "nothing says what each may take of it. Add --memory" in outcome.err
    assert not (tmp_path / "p.db").exists()
