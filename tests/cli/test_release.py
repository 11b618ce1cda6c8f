"""`coterie doctor --transformers`."""

from __future__ import annotations

import json

import pytest
import transformers

from coterie.hf.contract import Contract, expect
from coterie.hf.releases import TESTED


@pytest.fixture
def contracts(monkeypatch):
    """Only these are examined."""

    def make(*kept: bool) -> None:
        found = [
            Contract(name=f"thing {place}", protects="The view.", follower="coterie.hf.caches",
                     check=lambda is_kept=is_kept: expect(is_kept, "It is blue."), essential=place == 0)
            for place, is_kept in enumerate(kept)
        ]  # fmt: skip
        monkeypatch.setattr("coterie.generation.contracts.CONTRACTS", tuple(found))

    return make


def test_all_contracts_with_this_release(coterie):
    outcome = coterie("doctor", "--transformers", "--json")
    found = json.loads(outcome.out)
    assert (found["transformers"], found["ok"]) == (transformers.__version__, True)
    assert found["tested"] == list(TESTED)
    assert all(verdict["ok"] and verdict["problem"] is None for verdict in found["contracts"])
    assert {"decode steps show their cache", "a streamed model has the bits of stock"} <= {
        verdict["name"] for verdict in found["contracts"]
    }
    assert outcome.code == 0


def test_the_page_names_what_failed(coterie, contracts):
    contracts(False, True, False)
    outcome = coterie("doctor", "--transformers")
    assert outcome.code == 1
    told = " ".join(outcome.out.split())
    assert "thing 0 failed" in told
    assert "thing 1 ok" in told
    assert "thing 0: It is blue. It is relied on for this: The view. No model is opened." in told
    assert "thing 2: It is blue. It is relied on for this: The view. Models open all the same." in told
    assert "(coterie.hf.caches has to follow.)" in told


def test_a_failure_in_json_is_code_1(coterie, contracts):
    contracts(True, False)
    outcome = coterie("doctor", "--transformers", "--json")
    assert outcome.code == 1
    assert [verdict["problem"] for verdict in json.loads(outcome.out)["contracts"]] == [None, "It is blue."]


@pytest.mark.parametrize("option", ["--quick", "somewhere"])
def test_what_is_about_the_machine_is_refused(option, coterie):
    outcome = coterie("doctor", "--transformers", option)
    assert outcome.code == 2
    assert "about the machine" in outcome.err


def test_the_machine_s_page_tells_of_a_newer_release(coterie, tmp_path, monkeypatch):
    from coterie.plan import diagnosis
    from coterie.plan.diagnosis import PackageFacts

    newer = PackageFacts(name="transformers", version="5.99.0", supported=">=5.7,<6", ok=True)
    monkeypatch.setattr(diagnosis, "package_facts", lambda: (newer,))
    outcome = coterie("doctor", str(tmp_path), "--quick")
    assert outcome.code == 0
    assert "transformers 5.99.0 is newer than any release" in " ".join(outcome.out.split())
