"""Pruned stores: which experts stay, what is written down, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.errors import ChecksumError, ProfileIdentityError, StoreFormatError, UsageError
from coterie.extraction import extract, prune, quantize
from coterie.extraction.keeping import Amount, Keep, take_best
from coterie.hf.expert_counts import RouterGroups
from coterie.inspection import verify
from coterie.origins.selection import SELECTION_FILE, Selection
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts
from coterie.spec import BankKey
from coterie.store import Store
from zoo import ZOO

from .profiles import recorded
from .stores import snapshot, stored

FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")
pytestmark = pytest.mark.filterwarnings("ignore:In some layer, an expert was chosen")


def kept(store: Path) -> dict[BankKey, tuple[int, ...]]:
    selection = Selection.read(store)
    assert selection is not None
    return {key: bank.experts for key, bank in selection.banks.items()}


@pytest.fixture
def profile(moe: Path, tmp_path: Path) -> Path:
    """Expert 7 is chosen most and adds little; expert 1 is chosen seldom and adds much; German needs 3 and 4."""
    return recorded(
        tmp_path / "p.db",
        Checkpoint.open(moe),
        {
            ("text", "code"): [(7, 0.01, 900), (1, 5.0, 50), (2, 1.0, 400), (5, 0.3, 300)],
            ("text", "german"): [(3, 0.4, 60), (4, 0.3, 70), (5, 0.2, 90)],
        },
    )


@pytest.mark.parametrize(
    ("options", "experts"),
    [
        ({"by": "reap"}, (1, 2, 3)),
        ({"by": "ean"}, (1, 2, 5)),
        ({"by": "frequency"}, (2, 5, 7)),
        ({"by": "reap", "domains": ["german"]}, (3, 4, 5)),
        ({"by": "frequency", "domains": ["code"]}, (2, 5, 7)),
        # The largest of the shares: German's best two are worth more to it than code's second to code.
        ({"by": "reap", "domains": ["code", "german"]}, (1, 3, 4)),
        ({"by": "reap", "modalities": ["text"]}, (1, 2, 3)),
    ],
)
def test_what_a_profile_says_decides(moe: Path, profile: Path, tmp_path: Path, options, experts) -> None:
    prune(moe, tmp_path / "store", keep=3, profile=profile, **options)
    assert kept(tmp_path / "store") == {FIRST: experts, SECOND: experts}


def test_records_are_the_sources_and_the_store_is_a_smaller_model(moe: Path, tmp_path: Path, open_model) -> None:
    report = prune(moe, tmp_path / "store", keep="50%", by="random", seed=1)
    assert report.complete
    assert (report.experts_present, report.experts_total) == (8, 8)
    extract(moe, tmp_path / "whole")
    small, whole = Store.open(tmp_path / "store"), Store.open(tmp_path / "whole")
    for bank, experts in kept(tmp_path / "store").items():
        assert len(experts) == 4
        for new, old in enumerate(experts):
            assert stored(small, bank.expert(new)) == stored(whole, bank.expert(old))
    assert small.manifest.model.identity != whole.manifest.model.identity
    config = json.loads((tmp_path / "store/config.json").read_text())
    assert [config[name] for name in ("num_experts", "num_local_experts") if name in config] == [4]
    with torch.no_grad():
        logits = open_model(tmp_path / "store")(**ZOO["qwen3_moe"].inputs(length=20)).logits
    assert torch.isfinite(logits).all()


def test_of_a_store_it_is_what_it_is_of_the_checkpoint(moe: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "want", keep=5, by="random")
    extract(moe, tmp_path / "whole")
    prune(tmp_path / "whole", tmp_path / "got", keep=5, by="random")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")
    assert verify(tmp_path / "got", against=moe).ok
    assert prune(moe, tmp_path / "got", keep=5, by="random").status == "already complete"


def test_a_lossy_store_keeps_its_codes(moe: Path, tmp_path: Path) -> None:
    quantize(moe, tmp_path / "int4", scheme="int4", dense_scheme="int8")
    prune(tmp_path / "int4", tmp_path / "got", keep=5, by="random")
    prune(moe, tmp_path / "native", keep=5, by="random")
    quantize(tmp_path / "native", tmp_path / "want", scheme="int4", dense_scheme="int8")
    got, want = Store.open(tmp_path / "got"), Store.open(tmp_path / "want")
    assert {key: got.checksum(key) for key in got.keys()} == {key: want.checksum(key) for key in want.keys()}
    assert got.manifest.dense == want.manifest.dense
    assert got.manifest.model == want.manifest.model


def test_pruned_twice_the_first_model_is_named(moe: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "six", keep=6, by="random", seed=1)
    prune(tmp_path / "six", tmp_path / "three", keep=3, by="random", seed=2)
    six, three = (Selection.read(tmp_path / name) for name in ("six", "three"))
    assert six is not None
    assert three is not None
    assert three.identity == six.identity == Checkpoint.open(moe).identity
    assert [step["seed"] for step in three.steps] == [1, 2]
    for bank in three.banks:
        assert set(three.banks[bank].experts) < set(six.banks[bank].experts)
        assert three.banks[bank].before == 8
    assert verify(tmp_path / "three", against=moe).ok


def test_verification_finds_a_wrong_expert(moe: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "store", keep=6, by="random", seed=1)
    prune(moe, tmp_path / "other", keep=6, by="random", seed=2)
    assert kept(tmp_path / "store") != kept(tmp_path / "other")
    for name in ("experts/text/mlp-layer-001.safetensors", "coterie.json", "dense.safetensors"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "store" / name)
    assert not verify(tmp_path / "store", against=moe).ok


def test_an_interrupted_run_goes_on(moe: Path, tmp_path: Path) -> None:
    from store.faults import Killed, KillingCalls

    prune(moe, tmp_path / "want", keep=6, by="random")
    with pytest.raises(Killed):
        prune(moe, tmp_path / "got", keep=6, by="random", calls=KillingCalls(40))
    assert prune(moe, tmp_path / "got", keep=6, by="random").status == "resumed"
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_a_dry_run_writes_nothing(moe: Path, tmp_path: Path) -> None:
    report = prune(moe, tmp_path / "store", keep=6, by="random", dry_run=True)
    assert report.status == "planned"
    assert "coterie-selection.json" in {file.file for file in report.files}
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "0%"}, "not a number or share"),
        ({"keep": "-3"}, "not a number or share"),
        ({"keep": "half"}, "not a number or share"),
        ({"keep": "nan%"}, "not a number or share"),
        ({"keep": 9}, "has 8"),
        ({"keep": 8}, "nothing is to be pruned"),
        ({"keep": "100%"}, "nothing is to be pruned"),
        ({"keep": 1}, "Keep at least 2"),
        ({"keep": "talker=4"}, "component 'talker'"),
        ({"keep": "text=4,text=5"}, "once"),
        ({"keep": 4, "by": "magic"}, "measure 'magic'"),
        ({"keep": 4, "by": "reap"}, "--profile"),
        ({"keep": 4, "by": "random", "modalities": ["text"]}, "by no profile"),
        ({"keep": 4, "workers": 0}, "worker"),
    ],
)
def test_what_cannot_be_asked_for(moe: Path, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(moe, tmp_path / "store", **({"by": "random"} | options))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["cod"]}, "code"),
        ({"modalities": ["smell"]}, "modality 'smell'"),
        ({"modalities": ["audio"]}, "modality of this profile 'audio'"),
        ({"domains": []}, "No domain"),
        ({"by": "random"}, "by no profile"),
    ],
)
def test_what_a_profile_does_not_know(moe: Path, profile: Path, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(moe, tmp_path / "store", keep=4, profile=profile, **options)


def test_another_models_profile_is_refused(zoo_checkpoint, profile: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileIdentityError):
        prune(zoo_checkpoint("mixtral", torch.bfloat16), tmp_path / "store", keep=4, profile=profile)


def test_output_sizes_that_were_not_measured(moe: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(moe)
    banks = tuple(BankShape(bank=bank, experts=8, top_k=2) for bank in sorted(source.banks))
    run = RunFacts(identity=source.identity, model="m", model_class="M", tool_version="0", banks=banks)
    with (
        ProfileDatabase(tmp_path / "p.db", create=True) as database,
        Recording(database, run, vocabulary=0) as recording,
    ):
        group = recording.group("text", "code", "prompt")
        for shape in banks:
            ids = np.tile(np.arange(8, dtype=np.uint16)[:, None], (40, 1))
            recording.add(shape.bank, ids, np.ones(ids.shape, np.float32), None, group)
    with pytest.raises(UsageError, match="--by frequency"):
        prune(moe, tmp_path / "store", keep=4, profile=tmp_path / "p.db")
    prune(moe, tmp_path / "store", keep=4, profile=tmp_path / "p.db", by="frequency")
    assert kept(tmp_path / "store") == {FIRST: (0, 1, 2, 3), SECOND: (0, 1, 2, 3)}


def test_few_observations_are_warned_of(moe: Path, profile: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="mostly chance"):
        prune(moe, tmp_path / "store", keep=4, profile=profile, domains=["german"])


def test_every_modality_of_the_model_is_needed(zoo_checkpoint, tmp_path: Path) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.bfloat16)
    source = Checkpoint.open(directory)
    text = {("text", "prose"): [(e, 1.0 + e, 40) for e in range(4)]}
    with pytest.raises(UsageError, match="audio and image"):
        prune(directory, tmp_path / "s", keep="thinker=4", profile=recorded(tmp_path / "text.db", source, text))
    thinker = text | {(m, "prose"): [(at, 9.0, 50), (at + 1, 8.0, 40)] for m, at in (("image", 4), ("audio", 6))}
    some = recorded(tmp_path / "thinker.db", source, thinker)
    with pytest.raises(UsageError, match="Nothing was recorded of talker"):
        prune(directory, tmp_path / "s", keep=4, profile=some)
    # A component that keeps all its experts needs no profile; of each modality the best experts stay.
    prune(directory, tmp_path / "s", keep="thinker=6", profile=some)
    experts = {key.component: bank for key, bank in kept(tmp_path / "s").items()}
    assert {4, 6} < set(experts["thinker"])
    assert experts["talker"] == tuple(range(8))
    prune(directory, tmp_path / "t", keep="thinker=4", profile=some, modalities=["text"])
    assert {key.component: bank for key, bank in kept(tmp_path / "t").items()}["thinker"] == (0, 1, 2, 3)
    with pytest.raises(UsageError, match="domain 'prosa'"):
        prune(directory, tmp_path / "u", keep="thinker=4", profile=some, domains=["prosa"])


def test_partial_and_damaged_stores_are_refused(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "partial", experts="0-5")
    with pytest.raises(UsageError, match="12 of 16"):
        prune(tmp_path / "partial", tmp_path / "out", keep=4, by="random")
    extract(moe, tmp_path / "whole")
    with pytest.raises(UsageError, match="--component"):
        prune(tmp_path / "whole", tmp_path / "out", keep=4, by="random", component="text")
    data = bytearray((tmp_path / "whole/dense.safetensors").read_bytes())
    data[-100] ^= 1
    (tmp_path / "whole/dense.safetensors").write_bytes(data)
    with pytest.raises(ChecksumError):
        prune(tmp_path / "whole", tmp_path / "out", keep=4, by="random")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"schema_version": 2}',
        '{"schema_version": 1, "source": {"name": 1, "revision": null, "identity": ""}, "steps": [], "banks": []}',
        '{"schema_version": 1, "source": {"name": "m", "revision": null, "identity": ""}, "steps": [], "banks": '
        '[{"component": "text", "layer": 0, "bank": "mlp", "experts_before": 4, "experts": [1, 1]}]}',
        '{"schema_version": 1, "source": {"name": "m", "revision": null, "identity": ""}, "steps": [], "banks": '
        '[{"component": "text", "layer": 0, "bank": "mlp", "experts_before": 4, "experts": [4]}]}',
    ],
)
def test_a_damaged_selection_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / SELECTION_FILE).write_text(text)
    with pytest.raises(StoreFormatError, match=SELECTION_FILE):
        Selection.read(tmp_path)


def test_the_selections_file_reads_back(moe: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "store", keep=6, by="random")
    selection = Selection.read(tmp_path / "store")
    assert selection is not None
    assert selection.to_bytes() == (tmp_path / "store" / SELECTION_FILE).read_bytes()


def test_shares_are_rounded_up_and_groups_stay_of_one_size() -> None:
    assert Amount.parse("30%").of(10) == 3
    assert Amount.parse("29%").of(10) == 3
    assert Amount.parse("0.1%").of(10) == 1
    scores = {FIRST: np.array([8.0, 7, 6, 5, 4, 3, 2, 1])}
    grouped = {"text": RouterGroups(count=2, chosen=1, least=2)}
    assert take_best(scores, {FIRST: 4}, grouped) == {FIRST: (0, 1, 4, 5)}
    assert take_best(scores, {FIRST: 4}, {"text": RouterGroups()}) == {FIRST: (0, 1, 2, 3)}


@pytest.mark.parametrize(("keep", "message"), [(14, "multiple of 4, such as 16"), (4, "at least 8")])
def test_numbers_that_groups_do_not_allow(keep: int, message: str) -> None:
    bank = type("Bank", (), {"key": FIRST, "num_experts": 16, "choices": 2, "identities": 0})()
    with pytest.raises(UsageError, match=message):
        Keep.parse(keep).counts({FIRST: bank}, {"text": RouterGroups(count=4, chosen=2, least=2)})
