"""What is recorded of a running model is what its routers chose and its experts added, and changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.errors import (
    ProfileFormatError,
    ProfileIdentityError,
    ProfileWriteError,
    UsageError,
)
from coterie.extraction import extract
from coterie.generation.interruption import stoppable
from coterie.native import library
from coterie.passes.current import Stopped
from coterie.profiles import Group, Profile, ProfileDatabase
from coterie.spec import BankKey
from zoo import MATRIX, ZOO, logits
from zoo.sizes import TOKENS
from zoo.undecorated import UNDECORATED

BF16 = torch.bfloat16
NEW = 5


class Witness:
    """Keeps what the recorder is told, too."""

    wants_contributions = True

    def __init__(self) -> None:
        self.events: dict[str, list[Any]] = {"ExpertsSelected": [], "ExpertsContributed": [], "StepStarted": []}

    def on_event(self, event: Any) -> None:
        if type(event).__name__ in self.events:
            self.events[type(event).__name__].append(event)


def read(path: Path) -> Profile:
    with ProfileDatabase(path) as database:
        return Profile.read(database)


def group_tokens(profile: Profile, bank: BankKey) -> dict[Group, int]:
    """Tokens of each group that passed a bank's router."""
    table, found = profile.banks[bank], {}
    for index, tokens in zip(table.groups.tolist(), table.tokens.tolist(), strict=True):
        group = profile.groups[index]
        found[group] = found.get(group, 0) + tokens
    return found


@pytest.fixture
def model(zoo_store, open_model):
    return open_model(zoo_store("qwen3_moe", BF16), expert_memory="40%")


def generate(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(**ZOO["qwen3_moe"].inputs(seed=1), max_new_tokens=NEW, do_sample=False, **options)


def test_counters_are_those_of_the_events(model, tmp_path):
    expected, witness = generate(model), Witness()
    model.coterie.add_observer(witness)
    with model.coterie.record_profile(tmp_path / "p.db", domain="code", label="mine") as recorder:
        assert torch.equal(generate(model), expected)
    assert generate(model) is not None  # outside: not recorded
    prompt, generated = Group("text", "code", "prompt"), Group("text", "code", "generated")
    assert recorder.tokens == {prompt: 24, generated: NEW - 1}
    profile = read(tmp_path / "p.db")
    (run,) = profile.runs
    assert (run.label, run.identity, run.model_class) == ("mine", model.coterie.source.identity, "Qwen3MoeForCausalLM")
    for bank, table in profile.banks.items():
        assert (table.shape.experts, table.shape.top_k) == (8, 2)
        assert group_tokens(profile, bank) == {prompt: 24, generated: NEW - 1}
        chosen = [e for e in witness.events["ExpertsSelected"] if e.bank == bank][:NEW]
        added = [e for e in witness.events["ExpertsContributed"] if e.bank == bank][:NEW]
        ids = np.concatenate([e.expert_ids.ravel() for e in chosen])
        for name, values in (
            ("activations", None),
            ("gate_mass", np.concatenate([e.weights.ravel() for e in chosen])),
            ("reap_sum", np.concatenate([e.contributions.ravel() for e in added])),
        ):
            wanted = np.bincount(ids, values, minlength=8)
            np.testing.assert_allclose(getattr(table, name).sum(axis=0), wanted, rtol=1e-6)
        np.testing.assert_array_equal(table.reap_counts, table.activations)


def test_tokens_of_the_vocabulary_are_the_inputs(model, tmp_path):
    ids = generate(model)[0, :-1].tolist()
    with model.coterie.record_profile(tmp_path / "p.db"):
        generate(model)
    with ProfileDatabase(tmp_path / "p.db") as database:
        totals = database.vocabulary(database.runs()[0].uuid).totals["text", "mlp"]
    assert dict(zip(totals.tokens.tolist(), totals.counts.tolist(), strict=True)) == {t: ids.count(t) for t in set(ids)}


def test_nothing_more_than_was_asked_for(model, tmp_path):
    with model.coterie.record_profile(tmp_path / "p.db", contributions=False, vocabulary=0) as recorder:
        assert not recorder.wants_contributions
        generate(model)
    profile = read(tmp_path / "p.db")
    assert all(table.activations.sum() and not table.reap_counts.any() for table in profile.banks.values())
    with ProfileDatabase(tmp_path / "p.db") as database:
        assert not database.vocabulary(database.runs()[0].uuid).totals
    assert profile.domains == {"unsorted": 24 + NEW - 1}


def test_the_domain_may_change_between_passes(model, tmp_path):
    with model.coterie.record_profile(tmp_path / "p.db", domain="code") as recorder:
        logits(model, ZOO["qwen3_moe"].inputs(length=10))
        recorder.domain = "law"
        logits(model, ZOO["qwen3_moe"].inputs(length=7))
        with pytest.raises(UsageError, match="name of a domain"):
            recorder.domain = " "
    assert read(tmp_path / "p.db").domains == {"code": 10, "law": 7}


def test_padding_is_left_out(model, tmp_path):
    inputs = ZOO["qwen3_moe"].inputs(seed=2, batch=2, length=12)
    inputs["attention_mask"][0, :5] = 0
    witness = Witness()
    model.coterie.add_observer(witness)
    with model.coterie.record_profile(tmp_path / "p.db") as recorder:
        logits(model, inputs)
    assert recorder.tokens == {Group("text", "unsorted", "prompt"): 19}
    profile = read(tmp_path / "p.db")
    for event in witness.events["ExpertsSelected"]:
        wanted = np.bincount(event.expert_ids[5:].ravel(), minlength=8)
        np.testing.assert_array_equal(profile.banks[event.bank].activations.sum(axis=0), wanted)


def test_what_finished_sequences_go_on_with_is_left_out(model, tmp_path):
    both = ZOO["qwen3_moe"].inputs(seed=3, batch=2)
    free = model.generate(**both, max_new_tokens=NEW, do_sample=False)
    # The first sequence ends with its second token, the other one does not have it.
    end = next(t for t in free[0, 25:].tolist() if t not in free[1, 24:].tolist())
    length = free[0, 24:].tolist().index(end) + 1
    padding = model.config.pad_token_id
    assert padding is not None
    assert padding not in free[1, 24:].tolist()
    with model.coterie.record_profile(tmp_path / "p.db") as recorder:
        model.generate(**both, max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=padding)
    generated = recorder.tokens[Group("text", "unsorted", "generated")]
    # A token is an input one step after it was sampled; the last one of all never is.
    assert generated == min(length, NEW - 1) + NEW - 1


@pytest.mark.parametrize("name", ["qwen3_omni", "qwen3_vl_moe"])
def test_modalities_are_those_of_the_placeholders(name, zoo_store, open_model, tmp_path):
    zoo = ZOO[name]
    model = open_model(zoo_store(name), component="thinker" if name == "qwen3_omni" else None)
    media = {"image": True, "audio": "audio" in zoo.modalities}
    inputs = zoo.inputs(seed=1, length=32, **media)
    with model.coterie.record_profile(tmp_path / "p.db", domain="d"):
        logits(model, inputs)
    ids = inputs["input_ids"][0].tolist()
    wanted = {Group("image", "d", "prompt"): ids.count(TOKENS["image"])}
    if media["audio"]:
        wanted[Group("audio", "d", "prompt")] = ids.count(TOKENS["audio"])
    wanted[Group("text", "d", "prompt")] = 32 - sum(wanted.values())
    profile = read(tmp_path / "p.db")
    for bank in model.coterie.banks:
        assert group_tokens(profile, bank) == wanted


def test_a_talker_generates_speech(zoo_store, open_model, tmp_path):
    model = open_model(zoo_store("qwen3_omni", BF16))
    limits = {"thinker_max_new_tokens": 3, "talker_max_new_tokens": 4, "talker_min_new_tokens": 4}
    with model.coterie.record_profile(tmp_path / "p.db"):
        model.generate(**ZOO["qwen3_omni"].inputs(length=32), **limits)
    profile, stats = read(tmp_path / "p.db"), model.coterie.stats()
    for bank in model.coterie.banks:
        prompt, generated = stats.prefill_tokens[bank.component], stats.decode_tokens[bank.component]
        spoken = "speech" if bank.component == "talker" else "text"
        assert group_tokens(profile, bank) == {
            Group("text", "unsorted", "prompt"): prompt,
            Group(spoken, "unsorted", "generated"): generated,
        }


@pytest.mark.parametrize("name", ["switch_transformers", "nllb_moe", "dbrx", "jetmoe", "longcat_flash"])
def test_classes_that_choose_in_a_way_of_their_own(name, tmp_path, open_model):
    if reason := UNDECORATED[name].why_not:
        pytest.skip(reason)
    UNDECORATED[name].build(torch.float32).save_pretrained(tmp_path / "checkpoint")
    model, witness = open_model(tmp_path / "checkpoint"), Witness()
    model.coterie.add_observer(witness)
    with model.coterie.record_profile(tmp_path / "p.db"):
        model.generate(**UNDECORATED[name].inputs(seed=2), max_new_tokens=NEW, do_sample=False)
    profile = read(tmp_path / "p.db")
    widths = {event.bank: event.expert_ids.shape[1] for event in witness.events["ExpertsSelected"]}
    for bank, table in profile.banks.items():
        assert table.shape.top_k == widths[bank]
        chosen = [event for event in witness.events["ExpertsSelected"] if event.bank == bank]
        rows = [set(row) for event in chosen for row in event.expert_ids.tolist()]
        wanted = [sum(expert in row for row in rows) for expert in range(table.shape.experts)]
        assert table.activations.sum(axis=0).tolist() == table.reap_counts.sum(axis=0).tolist() == wanted
        mass = sum(float(e.weights[e.expert_ids < table.shape.experts].sum()) for e in chosen)
        assert table.gate_mass.sum() == pytest.approx(mass)
        added = [event.contributions for event in witness.events["ExpertsContributed"] if event.bank == bank]
        within = [norms[e.expert_ids < table.shape.experts].sum() for e, norms in zip(chosen, added, strict=True)]
        assert table.reap_sum.sum() == pytest.approx(float(sum(within)))


@pytest.mark.parametrize("name", sorted(name for name, model in MATRIX.items() if model.sees_with_experts))
def test_experts_for_pictures_alone(name, zoo_checkpoint, open_model, tmp_path):
    if reason := MATRIX[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name))
    inputs = MATRIX[name].inputs(seed=1, length=32, image=True)
    with model.coterie.record_profile(tmp_path / "p.db"):
        logits(model, inputs)
    profile = read(tmp_path / "p.db")
    seen = {bank: set(group_tokens(profile, bank)) for bank in profile.banks}
    of_pictures = {bank for bank in seen if "vision" in bank.component or "vision" in bank.bank}
    assert of_pictures
    assert of_pictures < set(seen)
    text, image = (Group(modality, "unsorted", "prompt") for modality in ("text", "image"))
    for bank, groups in seen.items():
        # Of text's experts, Ernie's see nothing of pictures.
        assert groups == {image} if bank in of_pictures else text in groups


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_the_native_library_computes_the_same_while_recording(scheme, zoo_checkpoint, tmp_path, open_model):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme=scheme)
    model = open_model(tmp_path / "store", expert_memory="40%")
    expected = generate(model)
    with model.coterie.record_profile(tmp_path / "p.db"):
        assert torch.equal(generate(model), expected)
    for table in read(tmp_path / "p.db").banks.values():
        np.testing.assert_array_equal(table.reap_counts, table.activations)


def test_a_pass_that_is_stopped_leaves_nothing_behind(model, tmp_path):
    with model.coterie.record_profile(tmp_path / "p.db"):
        for _ in range(2):
            with pytest.raises(Stopped), stoppable(lambda: True):
                logits(model, ZOO["qwen3_moe"].inputs(length=9))
            logits(model, ZOO["qwen3_moe"].inputs(length=7))
    assert read(tmp_path / "p.db").tokens == 14


def test_several_threads(model, tmp_path):
    def run(length: int) -> None:
        for _ in range(5):
            logits(model, ZOO["qwen3_moe"].inputs(seed=length, length=length))

    with model.coterie.record_profile(tmp_path / "p.db") as recorder:
        threads = [threading.Thread(target=run, args=(length,)) for length in (5, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert sum(recorder.tokens.values()) == 70
    profile = read(tmp_path / "p.db")
    assert [int(table.activations.sum()) for table in profile.banks.values()] == [140, 140]


# --- databases --------------------------------------------------------------------------------------------------------


def test_a_database_that_hangs_does_not_stop_the_model(model, tmp_path, monkeypatch):
    free, entered = threading.Event(), threading.Event()
    write = ProfileDatabase.write_segment

    def hang(self: ProfileDatabase, *args: Any, **options: Any) -> None:
        entered.set()
        assert free.wait(120)
        write(self, *args, **options)

    monkeypatch.setattr(ProfileDatabase, "write_segment", hang)
    inputs = ZOO["qwen3_moe"].inputs(seed=1, batch=8, length=200)
    with model.coterie.record_profile(tmp_path / "p.db") as recorder:
        try:
            for _ in range(12):  # more segments than may wait
                logits(model, inputs)
                generate(model)
            assert entered.wait(120)
            assert recorder.recording.tokens > 1600
        finally:
            free.set()
    assert read(tmp_path / "p.db").tokens == 12 * (1600 + 24 + NEW - 1)


def test_a_disk_that_is_full_is_told_at_the_end(model, tmp_path, monkeypatch):
    expected = generate(model)

    def full(self: ProfileDatabase, *args: Any, **options: Any) -> None:
        raise ProfileWriteError("The disk is full.", advice="Make room.")

    monkeypatch.setattr(ProfileDatabase, "write_segment", full)
    done = []
    with (
        pytest.raises(ProfileWriteError, match=rf"disk is full\. {24 + NEW - 1} tokens of run .* not written"),
        model.coterie.record_profile(tmp_path / "p.db"),
    ):
        done.append(generate(model))
    assert torch.equal(done[0], expected)
    assert torch.equal(generate(model), expected)  # nobody listens any more


def test_places_that_are_no_profiles(model, tmp_path):
    (tmp_path / "text").write_text("not a database, but rather more than a few bytes of text\n" * 40)
    for place, kind in (("text", ProfileFormatError), ("nowhere/p.db", ProfileWriteError)):
        with pytest.raises(kind), model.coterie.record_profile(tmp_path / place):
            pytest.fail("the context was entered")
    assert (tmp_path / "text").read_text().startswith("not a database")
    with pytest.raises(UsageError, match="name of a domain"), model.coterie.record_profile(tmp_path / "p", domain=""):
        pytest.fail("the context was entered")
    assert not (tmp_path / "p").exists()


def test_a_profile_of_another_model(model, zoo_store, open_model, tmp_path):
    other = open_model(zoo_store("olmoe", BF16))
    with other.coterie.record_profile(tmp_path / "p.db", label="a"):
        logits(other, ZOO["olmoe"].inputs())
    with (
        pytest.raises(ProfileIdentityError, match="is about the model"),
        model.coterie.record_profile(tmp_path / "p.db"),
    ):
        pytest.fail("the context was entered")
    with model.coterie.record_profile(tmp_path / "p.db", several_models=True):
        logits(model, ZOO["qwen3_moe"].inputs())
    with ProfileDatabase(tmp_path / "p.db") as database:
        assert len(database.identities()) == 2


def test_a_run_goes_on_under_its_label(model, zoo_store, open_model, tmp_path):
    for resume in (False, True, False):
        with model.coterie.record_profile(tmp_path / "p.db", label="mine", resume=resume):
            logits(model, ZOO["qwen3_moe"].inputs(length=8))
    profile = read(tmp_path / "p.db")
    assert (len(profile.runs), profile.tokens) == (2, 24)
    wider = open_model(zoo_store("qwen3_moe", BF16), experts_per_token=3)
    with (
        pytest.raises(UsageError, match="recorded with 2 of 8 experts per token"),
        wider.coterie.record_profile(tmp_path / "p.db", label="mine", resume=True),
    ):
        pytest.fail("the context was entered")
    with wider.coterie.record_profile(tmp_path / "wide.db"):
        logits(wider, ZOO["qwen3_moe"].inputs(length=8))
    assert {table.shape.top_k for table in read(tmp_path / "wide.db").banks.values()} == {3}
