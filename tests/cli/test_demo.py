import json
import shlex
from pathlib import Path

import pytest

from coterie.cli import demo
from coterie.cli.commands import COMMANDS, build
from coterie.evaluate import demonstration
from coterie.generation.sampling import Sampling


@pytest.fixture(autouse=True)
def short(monkeypatch, joined_cache) -> None:
    """Few tokens, and a cache of the tests; everything else is as users see it."""
    shortened(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(joined_cache))


def shortened(monkeypatch) -> None:
    monkeypatch.setattr(demonstration, "_SAMPLED", Sampling(max_new_tokens=4, temperature=0.7, top_p=0.9, seed=7))
    monkeypatch.setattr(demonstration, "_GREEDY_TOKENS", 2)


@pytest.fixture(scope="module")
def happened(tmp_path_factory, joined_cache) -> tuple[list[demonstration.Happening], demonstration.Demonstration]:
    """What one demonstration tells, and its result."""
    folder, told = tmp_path_factory.mktemp("demo"), []
    with pytest.MonkeyPatch.context() as patch:
        shortened(patch)
        patch.setenv("XDG_CACHE_HOME", str(joined_cache))
        result = demonstration.demonstrate(folder, tell=told.append)
    assert sorted(path.name for path in folder.iterdir()) == ["full", "partial", "spoken"]
    assert sorted(path.name for path in (folder / "spoken").iterdir()) == ["dog-ada.wav", "dog-ben.wav"]
    return told, result


@pytest.fixture
def again(happened, monkeypatch) -> list[Path]:
    """Demonstrations tell the same again; the folders that they are given."""
    folders: list[Path] = []

    def demonstrate(folder, *, tell=lambda _: None, progress=None):
        folders.append(folder)
        assert folder.is_dir()
        for one in happened[0]:
            tell(one)
        return happened[1]

    monkeypatch.setattr(demonstration, "demonstrate", demonstrate)
    return folders


def test_it_shows_every_part_and_proves(coterie, again, tmp_path) -> None:
    outcome = coterie("demo", "--keep", str(tmp_path))
    assert outcome.code == 0, outcome.err
    for text in (
        "256 of 256 experts",
        "dog.wav → dog",
        "sandal.png → a photo of a sandal",
        "9.00 MiB of 36.00 MiB of experts (25 %)",
        "Hit rate",
        "tokens per second",
        "Greatest difference: 0",
        "Bit-identical",
        "dog.wav → 'dog' → 0.",
        "s of sound → 'dog'",
        "64 of 256 experts",
        "Try next",
        f"coterie inspect {tmp_path / 'partial'}",
    ):
        assert text in outcome.out, text
    for domain, prompt in demonstration.PROMPTS:
        assert domain in outcome.out
        assert prompt in outcome.out
    commands = [line for line in outcome.out.splitlines() if line.strip().startswith("coterie ")]
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if line not in commands)
    assert outcome.err == ""
    assert again == [tmp_path]


def test_json_has_the_figures(coterie, again) -> None:
    outcome = coterie("demo", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [sample["domain"] for sample in found["samples"]][-2:] == ["speech", "picture"]
    assert found["exactness"]["identical"] is True
    assert found["exactness"]["cases"] == 8
    assert found["exactness"]["sequence_logits"] > 100_000
    assert found["holding"]["resident_bytes"] * 4 == found["holding"]["total_expert_bytes"]
    spoken = [(one["voice"], one["asked"], one["text"], one["heard"]) for one in found["spoken"]]
    assert spoken == [(voice, "dog.wav", "dog", "dog") for voice in ("ada", "ben")]
    assert set(found["partial"]["likeness"]) == {"mask", "drop"}
    assert all(view["kl"] > 0.01 and view["same_top"] < 1 for view in found["partial"]["likeness"].values())
    assert not again[0].exists()  # it was temporary


def test_a_difference_is_an_error(coterie, monkeypatch) -> None:
    compare = demonstration.compare_exactly

    def spoil(streamed, stock, cases, **options):
        stock.lm_head.weight.data[0] *= 1.5
        return compare(streamed, stock, cases, **options)

    monkeypatch.setattr(demonstration, "compare_exactly", spoil)
    needed = [one for one in demonstration.PROMPTS if one[0] in demonstration._PARTIAL_DOMAINS]
    monkeypatch.setattr(demonstration, "PROMPTS", needed)
    outcome = coterie("demo")
    assert outcome.code == 1
    assert "DIFFERENT" in outcome.out
    assert "Bit-identical" not in outcome.out
    assert "The logits differ from stock transformers for: prose" in outcome.err


@pytest.mark.parametrize("keep", [None, Path("some where")])
def test_what_it_says_to_try_are_commands_that_exist(keep, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for store in ("bundled-8", "some where"):
        (tmp_path / store).mkdir()  # as the commands before would have done
    steps = demo.next_steps(keep, demonstration.samples_folder() / "dog.wav")
    for line, what in steps:
        program, name, *arguments = shlex.split(line)
        assert program == "coterie"
        command = build(next(entry for entry in COMMANDS if entry.name == name))
        command.make_context(name, arguments)  # raises if an argument or option does not exist
        assert what


def test_a_line_of_code_stays_one_line() -> None:
    assert demo._one_line("a\n\tb\x1b\n") == "a ⏎  b "
