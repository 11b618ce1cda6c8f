"""The loop gives the tokens and logits of transformers' own, whoever else is in it, and what ends one ends no other."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from coterie.generation.draws import Draws
from coterie.generation.sequence import Sequence
from coterie.generation.steps import Steps, generated
from coterie.hf.generation_steps import last_logits, one_by_one, prepare
from coterie.passes.current import Request, Stopped, current
from coterie.spec import StepStarted
from zoo import MATRIX, ZOO

from .going import NEW, Failing, ids, sequence

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.9},
    "penalties": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "no cache": {"do_sample": False, "use_cache": False},
}
KINDS = [name for name, variant in MATRIX.items() if variant.generates and "omni" not in name]


@pytest.fixture
def model(zoo_checkpoint, open_model):
    return open_model(zoo_checkpoint("qwen3_moe"), expert_memory="50%")


def stock_way(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and logits of transformers' own loop."""
    torch.manual_seed(5)
    out = model.generate(**inputs, max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences[0], torch.cat(out.logits)


def our_way(
    model: Any, inputs: dict[str, Any], options: dict[str, Any], *, piece: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of ours."""
    torch.manual_seed(5)
    logits: list[torch.Tensor] = []
    prepared = prepare(model, **inputs, max_new_tokens=NEW, **options)
    sequence = Sequence(prepared, keep=lambda outputs: logits.append(last_logits(outputs, prepared.ids)), piece=piece)
    return generated(sequence).ids[0], torch.cat(logits)


@pytest.mark.matrix
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_goes_on_as_in_transformers(name: str) -> None:
    variant = MATRIX[name]
    if variant.why_not:
        pytest.skip(variant.why_not)
    model = variant.build(torch.float32).eval()
    if not one_by_one(model, model.generation_config):
        pytest.skip("the class has a loop of its own")
    inputs = variant.inputs(seed=3)
    for mode, options in MODES.items():
        expected = stock_way(model, inputs, options)
        for ours, theirs in zip(our_way(model, inputs, options), expected, strict=True):
            assert torch.equal(ours, theirs), mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "jamba", "qwen3_next", "qwen3_vl_moe"])
def test_a_streamed_model_goes_on_as_in_transformers(name, mode, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="25%")
    inputs = ZOO[name].inputs(seed=4)
    for ours, theirs in zip(our_way(model, inputs, MODES[mode]), stock_way(model, inputs, MODES[mode]), strict=True):
        assert torch.equal(ours, theirs)


def test_sequences_beside_each_other_are_as_alone(model) -> None:
    alone = [generated(sequence(model, seed, draws=Draws(seed))).new_ids.tolist() for seed in range(3)]
    steps = Steps()
    together = [sequence(model, seed, draws=Draws(seed)) for seed in range(2)]
    for one in together:
        steps.add(one)
    for _ in range(4):
        steps.step()
    together.append(sequence(model, 2, draws=Draws(2)))
    steps.add(together[2])
    while steps.going:
        steps.step()
    assert [one.new_ids.tolist() for one in together] == alone
    assert all(one.ended and one.error is None for one in together)


@pytest.mark.parametrize(
    ("name", "media"),
    [("qwen3_omni_thinker", {"image": True, "audio": True}), ("qwen3_vl_moe", {"image": True})],
)
def test_positions_after_pictures_are_each_ones_own(name, media) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = ZOO[name].build(torch.float32).eval()
    prompts = [ZOO[name].inputs(seed=3, length=32, **media), ZOO[name].inputs(seed=4, length=20)]

    def begun(inputs: dict[str, Any]) -> Sequence:
        return Sequence(prepare(model, **inputs, max_new_tokens=NEW, do_sample=False))

    alone = [generated(begun(inputs)).new_ids.tolist() for inputs in prompts]
    steps = Steps()
    together = [begun(inputs) for inputs in prompts]
    for one in together:
        steps.add(one)
    while steps.going:
        steps.step()
    assert [one.new_ids.tolist() for one in together] == alone


def test_static_caches_are_each_ones_own(model) -> None:
    options = {"max_new_tokens": NEW, "do_sample": False, "cache_implementation": "static"}
    alone = [generated(Sequence(prepare(model, input_ids=ids(seed), **options))).new_ids for seed in (1, 2)]
    steps = Steps()
    together = [Sequence(prepare(model, input_ids=ids(seed), **options)) for seed in (1, 2)]
    for one in together:
        steps.add(one)
    while steps.going:
        steps.step()
    assert all(torch.equal(ours.new_ids, theirs) for ours, theirs in zip(together, alone, strict=True))


def test_one_that_leaves_takes_no_further_part(model) -> None:
    steps = Steps()
    staying, leaving = sequence(model, 1), sequence(model, 2)
    steps.add(staying)
    steps.add(leaving)
    for _ in range(4):
        steps.step()
    steps.remove(leaving)
    steps.remove(leaving)
    steps.finish(staying)
    assert (len(staying.new_ids), len(leaving.new_ids), leaving.ended) == (NEW, 2, True)
    assert not steps.going
    steps.step()
    steps.finish(leaving)
    assert (len(leaving.new_ids), leaving.error) == (2, None)
    with pytest.raises(ValueError, match="not added"):
        steps.finish(sequence(model, 3))


def test_what_is_raised_over_one_ends_that_one_and_is_its_callers(model) -> None:
    expected = generated(sequence(model, 1)).new_ids
    steps = Steps()
    fine, broken = sequence(model, 1), sequence(model, 2)
    steps.add(broken)
    steps.add(fine)
    failing = Failing(broken.request, 2, ValueError("broken"))
    model.coterie.add_observer(failing)
    steps.finish(fine)
    assert torch.equal(fine.new_ids, expected)
    assert (broken.ended, len(broken.new_ids)) == (True, 2)
    with pytest.raises(ValueError, match="broken"):
        steps.finish(broken)
    model.coterie.remove_observer(failing)
    assert torch.equal(generated(sequence(model, 1)).new_ids, expected)


def test_one_that_its_caller_stops_ends_alone(model) -> None:
    expected = generated(sequence(model, 1)).new_ids
    steps = Steps()
    staying, stopped = sequence(model, 1), sequence(model, 2)
    steps.add(staying)
    steps.add(stopped)

    def stop() -> None:
        if len(stopped.new_ids) >= 2:
            raise Stopped

    stopped.request.before_layer = stop
    steps.finish(staying)
    with pytest.raises(Stopped):
        steps.finish(stopped)
    assert torch.equal(staying.new_ids, expected)
    assert len(stopped.new_ids) == 2


def test_an_interrupt_ends_its_sequence_and_the_step(model) -> None:
    steps = Steps()
    first, second = sequence(model, 1), sequence(model, 2)
    steps.add(first)
    steps.add(second)
    failing = Failing(first.request, 0, KeyboardInterrupt())
    model.coterie.add_observer(failing)
    with pytest.raises(KeyboardInterrupt):
        steps.step()
    model.coterie.remove_observer(failing)
    assert first.ended
    steps.finish(second)
    assert len(second.new_ids) == NEW


class Told:
    """An observer that notes whose each pass is, and what came before."""

    def __init__(self) -> None:
        self.passes: list[tuple[Any, ...]] = []

    def on_event(self, event: object) -> None:
        if isinstance(event, StepStarted):
            now = current()
            self.passes.append((now.rows[0].request, now.rows[0].position, now.cached, now.phase, now.batch))


def test_a_pass_knows_whose_it_is_and_what_came_before(model) -> None:
    model.coterie.add_observer(observer := Told())
    steps = Steps()
    one, two = sequence(model, 1, new=3), sequence(model, 2, new=2)
    steps.add(one)
    steps.add(two)
    while steps.going:
        steps.step()
    model.coterie.remove_observer(observer)
    assert observer.passes == [
        (one.request, 0, 0, "prefill", 1),
        (two.request, 0, 0, "prefill", 1),
        (one.request, 12, 12, "decode", 1),
        (two.request, 12, 12, "decode", 1),
        (one.request, 13, 13, "decode", 1),
    ]
    assert one.request is not two.request


def test_pieces_of_a_prompt_follow_one_another(model) -> None:
    model.coterie.add_observer(observer := Told())
    one = generated(sequence(model, 1, new=2, prefill_chunk_size=5))
    model.coterie.remove_observer(observer)
    assert observer.passes == [
        *((one.request, before, before, "prefill", 1) for before in (0, 5, 10)),
        (one.request, 12, 12, "decode", 1),
    ]


def test_what_prepares_a_pass_is_of_its_request(model, monkeypatch) -> None:
    prepare_inputs = model.prepare_inputs_for_generation

    def prepare_with_a_pass(tokens: torch.Tensor, **options: Any) -> Any:
        model(tokens[:, :3], use_cache=False)
        return prepare_inputs(tokens, **options)

    one, two = sequence(model, 1, new=2), sequence(model, 2, new=2)
    monkeypatch.setattr(model, "prepare_inputs_for_generation", prepare_with_a_pass, raising=False)
    model.coterie.add_observer(observer := Told())
    steps = Steps()
    steps.add(one)
    steps.add(two)
    while steps.going:
        steps.step()
    model.coterie.remove_observer(observer)
    assert [(request, phase) for request, _, _, phase, _ in observer.passes] == [
        *((request, "prefill") for request in (one.request, two.request) for _ in range(2)),
        *((request, phase) for request in (one.request, two.request) for phase in ("prefill", "decode")),
    ]


def test_losses_of_sequences_beside_each_other_are_as_alone(model) -> None:
    losses: dict[Request, list[float]] = {}

    class Losses:
        wants_losses = True

        def on_event(self, event: Any) -> None:
            if (found := getattr(event, "losses", None)) is not None:
                losses.setdefault(current().rows[0].request, []).extend(found[0].tolist())

    model.coterie.add_observer(observer := Losses())
    alone = [sequence(model, seed) for seed in (1, 2)]
    for one in alone:
        generated(one)
    together = [sequence(model, seed) for seed in (1, 2)]
    steps = Steps()
    for one in together:
        steps.add(one)
    while steps.going:
        steps.step()
    model.coterie.remove_observer(observer)
    for ours, theirs in zip(together, alone, strict=True):
        assert str(losses[ours.request]) == str(losses[theirs.request])
        assert losses[ours.request][-1] > 0


PIECEWISE = ["qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_vl_moe", "mixtral"]


@pytest.mark.parametrize("name", PIECEWISE)
def test_pieces_are_those_of_transformers(name, zoo_checkpoint, open_model) -> None:
    if name not in ZOO or ZOO[name].why_not:
        pytest.skip("no such model here")
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    inputs = ZOO[name].inputs(seed=4, length=23)
    for options in (MODES["greedy"], MODES["sampled"]):
        try:
            expected = stock_way(model, inputs, options | {"prefill_chunk_size": 8})
        except RuntimeError:
            # Older releases take positions in three dimensions apart in the wrong one.
            assert name == "qwen3_vl_moe"
            pytest.skip("transformers' own pieces fail")
        for ours, theirs in zip(our_way(model, inputs, options, piece=8), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["jamba", "qwen3_next"])
def test_a_prompt_whose_tokens_are_no_longer_there_is_one_piece(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    inputs, options = ZOO[name].inputs(seed=4, length=23), MODES["greedy"]
    for ours, theirs in zip(our_way(model, inputs, options, piece=8), stock_way(model, inputs, options), strict=True):
        assert torch.equal(ours, theirs)


def test_a_prompt_goes_on_where_its_cache_ends(model) -> None:
    from transformers import DynamicCache

    expected = our_way(model, {"input_ids": ids(1, 23)}, MODES["greedy"], piece=8)
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    for held in (8, 16):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            for begin in range(0, held, 8):
                model(input_ids=ids(1, 23)[:, begin : begin + 8], **{name: cache})
        inputs = {"input_ids": ids(1, 23), name: cache}
        for ours, theirs in zip(our_way(model, inputs, MODES["greedy"], piece=8), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_an_answer_waits_for_one_piece_of_others_prompts(model) -> None:
    model.coterie.add_observer(observer := Told())
    steps = Steps()
    answered = sequence(model, 1, new=9)
    steps.add(answered)
    steps.step()
    prompts = [Sequence(prepare(model, input_ids=ids(seed, 23), max_new_tokens=1, do_sample=False), piece=8)
               for seed in (2, 3)]  # fmt: skip
    for one in prompts:
        steps.add(one)
    while steps.going:
        steps.step()
    model.coterie.remove_observer(observer)
    names = {answered.request: "a", prompts[0].request: "p", prompts[1].request: "q"}
    turns = "".join(names[request] for request, *_ in observer.passes)
    # Pieces of the two prompts alternate, and between any two of them the answer gets a token.
    assert turns == "a" + "paqa" * 3 + "aa"


def test_what_ends_one_of_several_in_a_pass_leaves_the_others_their_tokens(model) -> None:
    """As a panic does of a Rust library that decodes one's token."""

    class Panicking:
        left = 3

        def put(self, value: torch.Tensor) -> None:
            self.left -= 1
            if self.left < 0:
                raise SystemExit("panic")

        def end(self) -> None:
            raise AssertionError("it has not ended by itself")

    expected = [generated(sequence(model, seed)).new_ids.tolist() for seed in (1, 2, 3)]
    steps = Steps()
    together = [sequence(model, 1), sequence(model, 2, stream=Panicking()), sequence(model, 3)]
    for one in together:
        steps.add(one)
    raised = 0
    while steps.going:
        try:
            steps.step()
        except SystemExit:
            raised += 1
    assert raised == 1
    assert [one.new_ids.tolist() for one in (together[0], together[2])] == [expected[0], expected[2]]
    with pytest.raises(SystemExit):
        together[1].check()
