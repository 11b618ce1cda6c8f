import json
from pathlib import Path

import pytest
import torch

from coterie import native
from coterie.plan import diagnosis, disk_notes
from coterie.plan.diagnosis import PackageFacts
from coterie.plan.queue_depth import ReadTuning, Trial


@pytest.fixture(autouse=True)
def _nothing_known_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out about this machine's disks is not looked at, and nothing is added to it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_json_has_what_the_page_shows(coterie, tmp_path: Path) -> None:
    outcome = coterie("doctor", str(tmp_path), "--quick", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["schema_version"] == 1
    assert found["torch_capability"] == torch.backends.cpu.get_cpu_capability()
    library = native.library()
    assert found["native_level"] == (None if library is None else library.level_name)
    assert found["disk"]["path"] == str(tmp_path)
    assert 0 < found["memory_budget"] < found["memory"]["total"]
    assert found["reads"] == []
    assert {"python", "torch", "transformers"} <= {package["name"] for package in found["packages"]}


def test_page_names_disk_budget_and_versions(coterie, tmp_path: Path) -> None:
    outcome = coterie("doctor", str(tmp_path), "--quick")
    assert outcome.code == 0
    for text in (str(tmp_path), "default budget", "direct I/O", torch.__version__):
        assert text in outcome.out
    assert "at once" not in outcome.out


@pytest.mark.slow
def test_read_speed_is_measured_and_the_file_is_gone(coterie, tmp_path: Path) -> None:
    outcome = coterie("doctor", str(tmp_path), "--json")
    reads = json.loads(outcome.out)["reads"]
    assert reads[0]["pattern"] == "sequential"
    assert {read["block"] for read in reads[1:]} == {128 * 1024, 512 * 1024, 1024 * 1024}
    assert all(read["nbytes"] > 0 and read["seconds"] > 0 for read in reads)
    assert list(tmp_path.iterdir()) == []


def test_a_package_out_of_range_is_code_1_with_advice(coterie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = PackageFacts(name="transformers", version="4.57.0", supported=">=5.7,<6", ok=False)
    monkeypatch.setattr(diagnosis, "package_facts", lambda: (old,))
    outcome = coterie("doctor", str(tmp_path), "--quick")
    assert outcome.code == 1
    assert "4.57.0, supported is >=5.7,<6" in outcome.out
    assert "pip install 'transformers>=5.7,<6'" in outcome.out


def test_where_speed_cannot_be_measured_the_rest_is_told(
    coterie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("coterie.plan.disk.tempfile.mkstemp", refuse)
    outcome = coterie("doctor", str(tmp_path))
    assert outcome.code == 0
    assert "instruction set" in outcome.out
    assert "new memory" in outcome.out
    told = " ".join(outcome.out.split())
    assert f"cannot be measured in {tmp_path}: Permission denied" in told


def test_the_trial_of_a_disk_is_made_and_shown_from_then_on(
    coterie, zoo_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(at_once=2, parts=1, lone=False, bytes_per_second=2.0**30)
    monkeypatch.setattr(
        disk_notes,
        "tune_reads",
        lambda extents, *, memory: ReadTuning(at_once=2, parts=2, record=extents[0].nbytes, trials=(trial,)),
    )
    store = zoo_store("mixtral")
    outcome = coterie("doctor", "--quick", "--disk", str(store))
    assert outcome.code == 0
    assert "are read 2 at once, in 2 parts" in " ".join(outcome.out.split())
    assert "1.00 GiB/s" in outcome.out
    found = json.loads(coterie("doctor", str(store), "--quick", "--json").out)
    assert [note["tuning"]["at_once"] for note in found["tunings"]] == [2]


def test_a_disk_that_cannot_be_tried_is_an_error_that_says_why(
    coterie, zoo_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_notes, "tune_reads", lambda extents, *, memory: None)
    outcome = coterie("doctor", "--quick", "--disk", str(zoo_store("mixtral")))
    assert outcome.code == 2
    assert "cannot be found out" in outcome.err


def test_a_path_that_is_not_there_is_an_error(coterie, tmp_path: Path) -> None:
    for arguments in ((str(tmp_path / "nope"),), ("--disk", str(tmp_path / "nope"))):
        outcome = coterie("doctor", "--quick", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"There is no directory '{tmp_path / 'nope'}'" in outcome.err


def test_a_store_is_named_as_everywhere(coterie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    (tmp_path / "stores" / "mine").mkdir(parents=True)
    found = json.loads(coterie("doctor", "mine", "--quick", "--json").out)
    assert found["disk"]["path"] == str(tmp_path / "stores" / "mine")
