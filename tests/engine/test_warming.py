"""A profile changes when experts are read and which stay, and not a bit of what comes out."""

from __future__ import annotations

import warnings

import pytest
import torch

from coterie.engine.warming import modalities_of
from coterie.errors import ProfileIdentityError, ProfileNotFoundError, UsageError
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts, Usage
from coterie.spec import ExpertsSelected

TEXTS = {
    "code": (
        "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n"
        * 3,
        "import sys\n\n\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    ),
    "prose": (
        "And it came to pass that the old man walked to the river, and sat there until the evening. " * 3,
        "The girl looked at her mother and said that she would not go to the town before the spring.",
    ),
}


class Counting:
    """Records what one run chooses into one group."""

    def __init__(self, recording, modality, domain):
        self._recording = recording
        self._group = recording.group(modality, domain, "prompt")

    def on_event(self, event):
        if isinstance(event, ExpertsSelected):
            self._recording.add(event.bank, event.expert_ids, event.weights, None, self._group)


def run_facts(opened, /, **changed):
    banks = tuple(
        BankShape(bank=bank.key, experts=bank.num_experts, top_k=bank.top_k) for bank in opened.coterie.expert_banks
    )
    facts = {"identity": opened.coterie.source.identity, "model": "bundled", "model_class": type(opened).__name__}
    return RunFacts(tool_version="0", banks=banks, **(facts | changed))


@pytest.fixture(scope="module")
def profile(bundled, processors, data, tmp_path_factory):
    """What the thinker does with one text of each domain, and with a sound."""
    from coterie.engine import load

    path = tmp_path_factory.mktemp("profile") / "p.db"
    model = load(bundled, expert_memory="100%", component="thinker")
    inputs = [
        ("text", domain, build_inputs(processors, texts[0], add_special_tokens=False))
        for domain, texts in TEXTS.items()
    ]
    inputs.append(("audio", "sounds", build_inputs(processors, "", audios=[data / "dog.wav"])))
    with ProfileDatabase(path, create=True) as database, Recording(database, run_facts(model)) as recording:
        for modality, domain, one in inputs:
            counting = Counting(recording, modality, domain)
            model.coterie.add_observer(counting)
            with torch.inference_mode():
                model(**one.to(model.dtype))
            model.coterie.remove_observer(counting)
    model.coterie.close()
    return path


@pytest.fixture
def opened(bundled, open_model):
    def open_(**options):
        options = {"expert_memory": "25%", "component": "thinker"} | options
        return open_model(bundled, **options)

    return open_


def wait_for_warming(model):
    model.coterie.cache.quiesce()


def generated(model, prompt):
    model.coterie.expect_request(["input_ids"])
    out = model.generate(
        **prompt.to(model.dtype), max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences, torch.stack(out.logits)


@pytest.fixture(scope="module")
def prompts(processors):
    return [build_inputs(processors, texts[1]) for texts in TEXTS.values()]


@pytest.fixture(scope="module")
def expected(bundled, prompts):
    """What comes out without a profile."""
    from coterie.engine import load

    with load(bundled, expert_memory="100%", component="thinker") as plain:
        return [generated(plain, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warm": "code", "pin": "50%"},
        {"eviction": "trust", "warm": None},
        {"eviction": "trust", "pin": "100%", "expert_memory": "12.5%"},
        {"eviction": "lru", "warm": "prose", "expert_memory": "100%"},
    ],
    ids=str,
)
def test_not_a_bit_of_the_output_changes(opened, prompts, expected, profile, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pin=")
        model = opened(profile=profile, **options)
    for prompt, (tokens, logits) in zip(prompts, expected, strict=True):
        got = generated(model, prompt)
        assert torch.equal(got[0], tokens)
        assert torch.equal(got[1], logits)
        stats = model.coterie.stats()
        assert stats.resident_bytes <= stats.capacity


def test_the_most_used_of_the_domain_are_in_memory_before_anything_is_asked_for(opened, profile):
    model = opened(profile=profile, warm="code")
    wait_for_warming(model)
    runtime = model.coterie
    experts = runtime.source.experts
    sizes = {key: experts.layout(key).nbytes for key in experts.keys()}
    order = Usage.open(profile).expected(domain="code").order(sizes)
    stats = runtime.stats()
    assert stats.warmed == stats.resident_experts > 0
    assert all(key in runtime.cache for key in order[: stats.warmed])
    assert 0.75 * stats.capacity < stats.resident_bytes <= 0.875 * stats.capacity
    assert (stats.warmed_for, stats.total.requested, stats.warmed_used) == ("code", 0, 0)
    assert stats.warmed_bytes == sum(sizes[key] for key in order[: stats.warmed])


@pytest.mark.parametrize("domain", list(TEXTS))
def test_auto_takes_the_domain_that_the_prompt_is_like(opened, processors, profile, domain):
    model = opened(profile=profile)
    assert model.coterie.stats().warmed_for is None
    for name in (domain, *(other for other in TEXTS if other != domain)):
        prompt = build_inputs(processors, TEXTS[name][1])
        complete(model, processors.tokenizer, prompt, Sampling(max_new_tokens=3, greedy=True))
        assert model.coterie.stats().warmed_for == name
    assert not model.coterie._attachment.observers


def test_a_request_says_which_modalities_are_expected(opened, processors, profile, data):
    assert modalities_of(["input_ids", "pixel_values", "image_grid_thw"]) == {"text", "image"}
    assert modalities_of(build_inputs(processors, "", audios=[data / "dog.wav"])) == {"text", "audio"}
    model = opened(profile=profile)
    runtime = model.coterie
    assert runtime.warming.modalities is None
    runtime.expect_request(["input_ids"])
    assert runtime.warming.modalities == ("text",)
    runtime.expect_request(["input_ids", "input_features", "pixel_values"], speech=True)
    assert runtime.warming.modalities == ("audio", "text")


def test_warming_saves_reads_after_the_prompt(opened, processors, profile):
    """What is read early is what is asked for: more hits than from an empty cache, on text that was not recorded."""
    hits = {}
    for warm in ("prose", None):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The profile has no effect")
            model = opened(profile=profile, warm=warm, prefetch="off", expert_memory="50%")
        wait_for_warming(model)
        generated(model, build_inputs(processors, TEXTS["prose"][1]))
        hits[warm] = model.coterie.stats().total.hits
        if warm is not None:
            assert model.coterie.stats().warmed_used > 0
    assert hits["prose"] > hits[None]


def test_a_profile_of_another_model_is_refused_before_the_model_is_built(opened, tmp_path):
    path = tmp_path / "other.db"
    model = opened()
    with ProfileDatabase(path, create=True) as database:
        database.add_run(run_facts(model, identity="f" * 32, model="Other"))
    with pytest.raises(ProfileIdentityError, match="Other"):
        opened(profile=path)
    with pytest.raises(ProfileNotFoundError):
        opened(profile=tmp_path / "none.db")


def test_an_unknown_domain_is_refused_with_those_there_are(opened, profile):
    with pytest.raises(UsageError, match="code"):
        opened(profile=profile, warm="coed")


def test_what_needs_a_profile_says_so(opened, profile):
    with pytest.raises(UsageError, match="profile"):
        opened(eviction="trust")
    with pytest.raises(UsageError, match="profile"):
        opened(pin="25%")
    with pytest.raises(UsageError, match="pin"):
        opened(profile=profile, pin="lots%")
    with pytest.raises(UsageError, match="warm"):
        opened(profile=profile, pin="25%", warm=None)
    with pytest.warns(UserWarning, match="no effect"):
        opened(profile=profile, warm=None)


def test_pins_leave_room_for_one_token(opened, profile):
    with pytest.warns(UserWarning, match="are pinned"):
        model = opened(profile=profile, pin="100%")
    runtime = model.coterie
    wait_for_warming(model)
    sizes = max(runtime.source.record_nbytes.values())
    pinned = runtime.stats().pinned
    assert 0 < pinned * sizes <= runtime.cache.capacity - runtime.working_set
