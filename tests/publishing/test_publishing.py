"""Stores are published whole, in one commit, and opened by their id again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from checkpoint.hub import Fault, Repository
from coterie.errors import PublishError, StoreBusyError, StoreError, UsageError
from coterie.extraction import quantize
from coterie.inspection import inspect, verify
from coterie.origins.side_files import side_files
from coterie.publishing import publish
from coterie.publishing.card import write_card
from coterie.store import AllocationFacts, Store, refresh_files
from coterie.store.names import CARD_FOLLOWS, FIT_FACTS, JOURNAL
from zoo import ZOO, logits

from .conftest import REPO


def files(directory: Path) -> dict[str, int]:
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size for path in directory.rglob("*") if path.is_file()
    }


def head(hub, reference: str = "main") -> Path:
    repository = hub.repositories[REPO]
    return repository.commits[repository.references[reference]]


def sent(hub) -> list[str]:
    """The large files that were sent, in order."""
    return [what.removeprefix("PUT cdn ") for what in hub.uploaded if what.startswith("PUT")]


def large(store: Path) -> set[str]:
    return {name for name in files(store) if name.endswith(".safetensors")}


def test_what_is_published_is_opened_by_its_id(hub, store, open_model, zoo_stock):
    report = publish(store, REPO)
    assert report.status == "published"
    assert report.files == {name: size for name, size in files(head(hub)).items() if name != ".gitattributes"}
    for name in large(store) | {"config.json"}:
        assert (head(hub) / name).read_bytes() == (store / name).read_bytes()
    model, inputs = open_model(REPO), ZOO["qwen3_moe"].inputs()
    assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe"), inputs))
    assert verify(REPO).ok
    assert inspect(REPO).model.identity == inspect(store).model.identity


def test_all_becomes_visible_in_one_commit(hub, store):
    report = publish(store, REPO, message="The first one")
    repository = hub.repositories[REPO]
    assert list(repository.messages.items()) == [(report.commit, "The first one")]
    assert hub.uploaded[-1] == "POST commit"
    assert hub.uploaded.count("POST commit") == 1


def test_a_new_repository_is_private_unless_it_is_to_be_public(hub, store):
    publish(store, REPO)
    assert hub.repositories[REPO].private
    publish(store, "me/other", private=False)
    assert not hub.repositories["me/other"].private
    with pytest.raises(PublishError, match="is there already, and is private"):
        publish(store, REPO, private=False)


def test_a_branch_is_a_revision(hub, store, tmp_path):
    publish(store, REPO)
    quantize(store, tmp_path / "small", scheme="int4")
    publish(tmp_path / "small", REPO, branch="int4")
    assert inspect(REPO, revision="int4").banks[0].schemes == {"int4": 8}
    assert inspect(REPO).banks[0].schemes == {"native": 8}


def test_the_second_time_nothing_is_sent(hub, store):
    first = publish(store, REPO)
    before = sent(hub)
    second = publish(store, REPO)
    assert sent(hub) == before
    assert second.files == first.files


def test_a_store_that_replaces_another_leaves_nothing_of_it(hub, zoo_store, store, tmp_path):
    publish(store, REPO)
    quantize(store, tmp_path / "small", scheme="int4")
    name = next(name for name in large(tmp_path / "small") if name.startswith("experts/"))
    grown = head(hub) / name.replace(".safetensors", ".1.safetensors")
    shutil.copy(store / name, grown)
    report = publish(tmp_path / "small", REPO)
    assert report.removed == (grown.relative_to(grown.parents[2]).as_posix(),)
    assert files(head(hub)).keys() - {".gitattributes"} == report.files.keys()
    assert verify(REPO).ok


def test_a_plan_asks_the_hub_nothing(hub, store):
    report = publish(store, REPO, dry_run=True)
    assert (report.status, report.commit) == ("planned", None)
    assert report.card is not None
    assert hub.uploaded == hub.asked == []
    assert report.nbytes == sum(report.files.values())


# --- the card ---------------------------------------------------------------------------------------------------------


def with_card(store: Path, text: str) -> None:
    """As `coterie stores refresh` does after a card was put into a store."""
    from coterie.store import refresh_files

    (store / "README.md").write_text(text)
    refresh_files(store)


def test_a_card_says_what_the_store_is(hub, store, tmp_path):
    quantize(store, tmp_path / "small", scheme="int4")
    publish(tmp_path / "small", REPO, base_model="someone/tiny-moe")
    card = ModelCard((head(hub) / "README.md").read_text())
    assert card.data.to_dict() == {
        "base_model": "someone/tiny-moe",
        "base_model_relation": "quantized",
        "library_name": "coterie",
        "tags": ["coterie", "int4", "mixture-of-experts"],
    }
    assert "16 of 16" in card.text
    assert "int4 (16)" in card.text
    assert f"coterie generate {REPO}" in card.text


def test_a_directory_is_no_base_model(hub, store):
    publish(store, REPO)
    assert "base_model" not in ModelCard((head(hub) / "README.md").read_text()).data.to_dict()


def test_metadata_of_the_source_stay(hub, zoo_checkpoint, tmp_path):
    from coterie.extraction import extract

    checkpoint = shutil.copytree(zoo_checkpoint("qwen3_moe"), tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\nbase_model: a/b\ntags:\n- chat\nlibrary_name: transformers\n---\n\n"
        "# Tiny\n\nIt is small.\n"
    )
    extract(checkpoint, tmp_path / "store")
    publish(tmp_path / "store", REPO)
    card = ModelCard((head(hub) / "README.md").read_text())
    assert (card.data.license, card.data.language, card.data.library_name) == ("apache-2.0", ["en"], "coterie")
    assert card.data.tags == ["chat", "coterie", "mixture-of-experts"]
    assert "base_model" not in card.data.to_dict()  # that of the source is not what the store was made from
    assert "The card of the model that this store was made from follows.\n\n# Tiny" in card.text


def test_a_card_may_be_edited_on_the_hub(hub, store, open_model):
    publish(store, REPO)
    assert "README.md" not in {facts.file for facts in Store.open(head(hub)).manifest.files}
    (head(hub) / "README.md").write_text("Something else.")
    open_model(REPO)
    assert verify(REPO).ok
    publish(store, REPO, keep_card=True)
    assert (head(hub) / "README.md").read_text() == "Something else."


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_not_published(hub, store):
    name = next(name for name in large(store) if name.startswith("experts/"))
    content = bytearray((store / name).read_bytes())
    content[-100] ^= 1
    (store / name).write_bytes(content)
    with pytest.raises(StoreError, match=rf"is damaged, and was not published: {name}"):
        publish(store, REPO)
    assert hub.uploaded == []


def test_a_growing_store_is_not_published(hub, store):
    (store / JOURNAL).write_bytes(b"")
    with pytest.raises(StoreBusyError, match="is growing, or a growth of it was interrupted"):
        publish(store, REPO)
    assert hub.uploaded == []


def test_what_is_no_store_here_is_refused(hub, store, zoo_checkpoint):
    with pytest.raises(UsageError, match="is a checkpoint, and only stores are published"):
        publish(zoo_checkpoint("qwen3_moe"), REPO)
    publish(store, REPO)
    with pytest.raises(UsageError, match="is on the Hub already"):
        publish(REPO, "me/other")


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "me/..", "me/a b"])
def test_what_is_no_id_is_refused(repo, hub, store):
    with pytest.raises(UsageError):
        publish(store, repo)
    assert hub.uploaded == []


def test_a_repository_with_something_else_is_left_alone(hub, store, zoo_checkpoint):
    hub.repositories[REPO] = Repository(private=True)
    hub.repositories[REPO].commit(zoo_checkpoint("qwen3_moe"))
    with pytest.raises(UsageError, match=r"holds something else than a store: model\.safetensors"):
        publish(store, REPO)
    assert sent(hub) == []


# --- faults -----------------------------------------------------------------------------------------------------------


def test_an_upload_that_was_stopped_goes_on(hub, store):
    last = sorted(large(store))[-1]
    hub.faults.append(Fault("status", f"PUT cdn {last}", status=500))
    with pytest.raises(PublishError, match=rf"The Hub did not take {last}.*Run the same command again"):
        publish(store, REPO)
    assert not hub.repositories[REPO].messages  # nothing is visible
    done = [name for name in sent(hub) if name != last]
    assert set(done) == large(store) - {last}
    hub.faults.clear()
    hub.uploaded.clear()
    publish(store, REPO)
    assert sent(hub) == [last]
    assert verify(REPO).ok


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_connection_that_breaks_is_made_again(kind, hub, store):
    name = sorted(large(store))[0]
    hub.faults.append(Fault(kind, f"PUT cdn {name}", after=1000, count=1))
    publish(store, REPO)
    assert verify(REPO).ok


@pytest.mark.parametrize("what", ["create", "preupload", "batch", "commit", "PUT cdn"])
def test_a_server_that_is_busy_is_asked_again(what, hub, store):
    hub.faults.append(Fault("status", what, status=503, count=2))
    publish(store, REPO)
    assert verify(REPO).ok


@pytest.mark.parametrize(
    ("status", "what", "advice"),
    [
        (401, "create", "hf auth login"),
        (403, "preupload", "hf auth login"),
        (412, "commit", "Somebody else has committed"),
        (413, "commit", "Run the same command again"),
    ],
)
def test_a_refusal_says_what_to_do(status, what, advice, hub, store):
    hub.faults.append(Fault("status", f"POST hub {what}", status=status))
    with pytest.raises(PublishError, match=advice) as caught:
        publish(store, REPO)
    assert caught.value.status == status


def test_without_a_network_it_is_said(hub, store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        publish(store, REPO)
    assert publish(store, REPO, dry_run=True).status == "planned"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(hub, store, capsys):
    from coterie.cli import main

    assert main(["publish", str(store), REPO, "--dry-run"]) == 0
    assert "library_name: coterie" in capsys.readouterr().out
    assert main(["publish", str(store), REPO, "--public", "-m", "Hello", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["repo_id"]) == ("published", REPO)
    assert list(hub.repositories[REPO].messages.values()) == ["Hello"]
    assert main(["publish", str(store), "nobody"]) == 2
    assert "does not say whose repository it is" in capsys.readouterr().err


def test_the_card_of_a_fitted_store_stays_until_the_store_grows(hub, store):
    card = (
        f"---\nlicense: mit\n---\n\n# In 8 GiB\n\nIts figures.\n\n---\n\n{CARD_FOLLOWS}\n\n# The model\n\nIts text.\n"
    )
    (store / "README.md").write_text(card)
    (store / FIT_FACTS).write_text("{}")
    refresh_files(store, side_files(store))
    # What grows has no allocation any more, and so it is as this one, to which nothing was allocated.
    manifest = Store.open(store).manifest
    assert manifest.allocation is None
    allocated = AllocationFacts(criterion="reap", domains=(), tokens_of={}, profile="0" * 32, bits=4000, left_out=0)
    fitted = dataclasses.replace(manifest, allocation=allocated)
    written = write_card(fitted, card, REPO, base_model=None, nbytes=1)
    assert "Its figures." in written
    assert "# The model" in written
    report = publish(store, REPO)
    assert FIT_FACTS not in report.files
    there = (head(hub) / "README.md").read_text()
    assert "Its figures." not in there
    assert "license: mit" in there
    assert "# The model\n\nIts text." in there
    assert "| experts |" in there
    assert verify(REPO).ok
