"""Sequences share passes of models whose layers are their classes' own: each gets nearly what it gets alone."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch

from coterie.errors import ReadError
from coterie.generation import doubts
from coterie.generation.steps import Steps
from coterie.hf.caches import cached_length
from coterie.hf.generation_steps import one_by_one
from coterie.hf.mixers import Mixer
from coterie.integration import row_mixers, rows_together
from coterie.native import MOST_ROWS
from coterie.records.reads import RecordReader
from zoo import MATRIX, ZOO
from zoo.sizes import TEXT_IDS

from .beside import Beside, begun, count_shared
from .conftest import OLD

DTYPES = {"qwen3_moe": torch.float32}


@pytest.fixture
def fast(zoo_checkpoint, open_model):
    """Gives a model in bfloat16: ``fast(name, **options)``."""

    def make(name: str = "qwen3_moe", **options: Any) -> Any:
        case = ZOO.get(name) or MATRIX[name]
        if case.why_not:
            pytest.skip(case.why_not)
        return open_model(zoo_checkpoint(name, DTYPES.get(name, torch.bfloat16)), **options)

    return make


@pytest.fixture
def shared(monkeypatch) -> list[int]:
    return count_shared(monkeypatch)


def several_of(model: Any, lengths: tuple[int, ...], new: int = 6) -> list[Beside]:
    drawn = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, TEXT_IDS, (1, length), generator=drawn) for length in lengths]
    return [Beside(model, seed, new=new, inputs={"input_ids": ids}) for seed, ids in enumerate(prompts)]


def finish(steps: Steps) -> None:
    while steps.going:
        steps.step()


def divergence(ours: Beside, theirs: Beside) -> float:
    """The greatest KL(theirs ‖ ours) of a step, up to the first token that differs."""
    greatest = 0.0
    tokens = zip(ours.sequence.new_ids, theirs.sequence.new_ids, strict=True)
    for q, p, (one, other) in zip(ours.logits, theirs.logits, tokens, strict=True):
        log_q, log_p = (torch.log_softmax(logits.double(), -1) for logits in (q, p))
        greatest = max(greatest, float((log_p.exp() * (log_p - log_q)).sum()))
        if one != other:
            break
    return greatest


# Their windows have 8 to 32 tokens, some of the prompts more: what is hidden differs by row, and caches forget.
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_each_gets_nearly_what_it_gets_alone(name, fast, shared) -> None:
    model = fast(name)
    assert (rows_together(model), rows_together(model, "fast")) == (1, MOST_ROWS)
    compare(model, (3, 41, 17, 30))
    assert max(shared) == 4


def test_a_model_that_keeps_keys_on_its_modules_keeps_those_of_each_sequence(fast, shared) -> None:
    """So GLM-MoE-DSA's indexers do in older releases of transformers; in newer ones a cache has them."""
    model = fast("glm_moe_dsa")
    compare(model, (3, 41, 17, 30), exact=True)
    assert not shared


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in {**MATRIX, **ZOO}.items() if case.generates])
def test_every_family_gets_nearly_what_it_gets_alone_or_takes_turns(name, fast, shared) -> None:
    model = fast(name)
    if not one_by_one(model, model.generation_config):
        pytest.skip("its class has a loop of its own")
    why = row_mixers.why_apart(model)
    compare(model, (3, 41, 17, 30), exact=why is not None)
    # Older releases of transformers make positions within the forward pass of some.
    assert max(shared, default=1) == (4 if why is None and not OLD else max(shared, default=1))
    assert why is None or not shared


def compare(model: Any, lengths: tuple[int, ...], *, exact: bool = False) -> None:
    alone = [one.alone() for one in several_of(model, lengths)]
    steps, together = Steps(batching="fast", measured=False), several_of(model, lengths)
    for one in together:
        steps.add(one.sequence)
        steps.step()
    finish(steps)
    for one, other in zip(together, alone, strict=True):
        one.sequence.check()
        assert other.sequence.exact
        assert one.is_as(other) if exact else divergence(one, other) < 1e-4
    assert all(again.alone().is_as(one) for again, one in zip(several_of(model, lengths), alone, strict=True))


def test_pictures_and_sounds_share_passes_with_texts(fast, shared) -> None:
    model = fast("qwen3_omni_thinker")
    inputs = ZOO["qwen3_omni_thinker"].inputs(length=32, image=True, audio=True)
    prompt = {name: one.bfloat16() if one.is_floating_point() else one for name, one in inputs.items()}
    alone = [Beside(model, 0, inputs=prompt).alone(), Beside(model, 1).alone()]
    steps = Steps(batching="fast", measured=False)
    together = [Beside(model, 0, inputs=prompt), Beside(model, 1)]
    for one in together:
        steps.add(one.sequence)
    steps.step()
    # Older releases of transformers make positions within the forward pass, of the sequence that came last.
    given = (together[0].sequence.next_inputs() or {}).get("position_ids") is not None
    finish(steps)
    assert max(shared, default=1) == (2 if given else 1)
    assert max(divergence(*pair) for pair in zip(together, alone, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("name", "why"), [("qwen3_next", "such as a state"), ("gemma4_text", "shared_kv_states"), ("jetmoe", "has experts")]
)
def test_models_that_cannot_take_turns(name, why, fast, shared) -> None:
    model = fast(name)
    assert rows_together(model, "fast") == 1
    assert why in (row_mixers.why_apart(model) or "")
    steps, several = begun(model, 2, new=3, steps=Steps(batching="fast"))
    finish(steps)
    assert not shared
    assert all(one.is_as(Beside(model, seed, new=3).alone()) for seed, one in enumerate(several))


def test_linear_layers_and_experts_are_asked_once_for_all_rows(fast, shared) -> None:
    model = fast()
    steps, _ = begun(model, 3, new=5, steps=Steps(batching="fast", measured=False))
    steps.step()  # finds out which layer is the last
    calls: list[tuple[str, int]] = []
    attention = model.model.layers[0].self_attn
    for name, linear in attention.named_children():
        if "proj" in name:
            beneath = linear.forward

            def forward(input: torch.Tensor, name: str = name, beneath: Any = beneath) -> torch.Tensor:
                calls.append((name, len(input)))
                return beneath(input)

            linear.forward = forward
    before = model.coterie.stats().total.requested
    steps.step()
    assert calls == [("q_proj", 3), ("k_proj", 3), ("v_proj", 3), ("o_proj", 3)]
    assert model.coterie.stats().total.requested - before < 3 * 2 * len(model.coterie.banks)


def test_an_expert_that_cannot_be_read_takes_nothing_from_the_others(fast, monkeypatch, shared) -> None:
    model = fast(expert_memory="30%", prefetch="off")
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 3, steps=Steps(batching="fast", measured=False))
    steps.step()
    prepare, left = RecordReader.prepare, [2]

    def failing(self: RecordReader, key: Any, layout: Any, record: Any) -> Any:
        if key.layer == 1 and left[0]:
            left[0] -= 1
            raise ReadError("bad sector", key=key)
        return prepare(self, key, layout, record)

    monkeypatch.setattr(RecordReader, "prepare", failing)
    steps.step()
    ended = [one for one in several if one.sequence.error is not None]
    for one in several:
        if one not in ended:
            assert cached_length(one.sequence.cache) == one.sequence.position
    finish(steps)
    assert left == [0]
    assert len(ended) < 3
    for one, other in zip(several, alone, strict=True):
        if one not in ended:
            assert divergence(one, other) < 1e-4


def test_one_that_leaves_in_the_middle_of_a_pass_frees_its_cache_at_once(fast, monkeypatch, shared) -> None:
    model = fast()
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 3, steps=Steps(batching="fast", measured=False))
    leaving = max((one.sequence for one in several), key=lambda one: one.position)
    row = [one.sequence for one in several].index(leaving)
    kept = [weakref.ref(layer.keys) for layer in leaving.cache.layers]
    gone: list[list[bool]] = []
    original = row_mixers.MixedRows.come_to

    def come_to(self: Any, layer_idx: int) -> Any:
        if layer_idx == 1:
            thread = threading.Thread(target=steps.remove, args=(leaving,))
            thread.start()
            thread.join()
        found = original(self, layer_idx)
        gone.append([ref() is None for ref in kept])
        return found

    monkeypatch.setattr(row_mixers.MixedRows, "come_to", come_to)
    steps.step()
    monkeypatch.undo()
    assert gone == [[False, False], [True, True]]
    assert (leaving.ended, leaving.error) == (True, None)
    finish(steps)
    assert max(divergence(several[other], alone[other]) for other in {0, 1, 2} - {row}) < 1e-4


def test_a_model_that_is_called_otherwise_after_all_takes_turns(fast, monkeypatch, caplog, shared) -> None:
    model = fast()
    named = Mixer.named
    monkeypatch.setattr(Mixer, "named", lambda self, *args: named(self, *args) | {"strange": torch.ones(3)})
    steps, several = begun(model, 3, steps=Steps(batching="fast", measured=False))
    finish(steps)
    assert shared == [3]
    assert [one.message for one in caplog.records if one.name == doubts.__name__.rpartition(".")[0]] == [
        "Answers of Qwen3MoeForCausalLM take turns, a token each: Qwen3MoeAttention is given strange, a Tensor."
    ]
    assert all(one.is_as(Beside(model, seed).alone()) for seed, one in enumerate(several))


def test_what_fails_only_for_several_is_not_tried_for_ever(fast, monkeypatch, shared) -> None:
    model = fast()

    def broken(self: Any, *args: Any) -> Any:
        raise TypeError("no such thing")

    monkeypatch.setattr(row_mixers._Call, "together", broken)
    steps, several = begun(model, 2, steps=Steps(batching="fast", measured=False))
    finish(steps)
    assert shared == [2, 2]
    assert all(one.is_as(Beside(model, seed).alone()) for seed, one in enumerate(several))
