"""A conversation goes on with the cache of its last answer, and computes what is new only."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from coterie.engine.loader import load
from coterie.generation.completion import Completion
from coterie.generation.conversation import Conversation
from coterie.generation.inputs import build_inputs
from coterie.generation.kept_cache import KeptCache
from coterie.generation.prefixes import Prefixes
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Sequence
from coterie.generation.steps import generated
from coterie.hf.generation_steps import last_logits, prepare, prepare_in_pieces
from coterie.passes.idle_caches import IDLE
from zoo import ZOO

GREEDY = Sampling(max_new_tokens=3, greedy=True)
TURNS = ["And it came to pass in those days", "that there went out a decree", "and all went to be taxed"]


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="100%")
    yield opened
    opened.coterie.close()


def talk(model: Any, processors: Any, **options: Any) -> Conversation:
    return Conversation(model, processors, sampling=options.pop("sampling", GREEDY), **options)


def ids(*parts: tuple[int, int]) -> torch.Tensor:
    """Random tokens: (seed, how many), one part after the other."""
    made = [torch.randint(9, 100, (1, count), generator=torch.Generator().manual_seed(seed)) for seed, count in parts]
    return torch.cat(made, dim=1)


class Turns:
    """Sequences that go on with one cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.kept = model, KeptCache()
        self.logits: list[torch.Tensor] = []
        self.reused = -1

    def ask(self, prompt: torch.Tensor, *, new: int = 4, fail_after: int | None = None, **inputs: Any) -> torch.Tensor:
        """Returns all of its tokens."""
        given = {"input_ids": prompt, **inputs}
        prepared = prepare_in_pieces(self.model, given, max_new_tokens=new, do_sample=False)
        self.logits = []

        def keep(outputs: Any) -> None:
            self.logits.append(last_logits(outputs, prepared.ids))

        sequence = Sequence(prepared, keeper=self.kept.begin(prepared), keep=keep)
        self.reused = sequence.reused
        for _ in range(fail_after or 0):
            sequence.take(sequence.run())
        if fail_after is not None:
            sequence.run()  # its tokens are in the cache, and nobody takes what it returned
            sequence.cancel()
            return sequence.ids
        return generated(sequence).ids


def stock_turn(model: Any, prompt: torch.Tensor, cache: Any, *, new: int = 4) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """The same by transformers, which goes on with a cache as well."""
    given = {} if cache is None else {"past_key_values": cache}
    out = model.generate(
        input_ids=prompt,
        max_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **given,
    )
    return out.sequences, out.past_key_values, torch.cat(out.logits)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.filterwarnings("ignore:.*past_key_values")
def test_turns_are_those_of_transformers_with_one_cache(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    turns, cache, before = Turns(model), None, 0
    prompt = ids((1, 20))
    for seed in range(3):
        got, (expected, cache, logits) = turns.ask(prompt), stock_turn(model, prompt, cache)
        assert torch.equal(got, expected)
        assert torch.equal(torch.cat(turns.logits), logits)
        assert turns.reused == before
        before = got.shape[1] - 1  # its last token was never computed
        prompt = torch.cat([got, ids((seed + 2, 7))], dim=1)


@pytest.fixture
def tiny(zoo_checkpoint, open_model):
    return open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), max_context=200)


def test_it_goes_back_to_where_a_pass_ended(tiny) -> None:
    turns = Turns(tiny)
    first = turns.ask(ids((1, 20)))
    second = torch.cat([first, ids((2, 9))], dim=1)
    answer, logits = turns.ask(second), turns.logits
    assert turns.reused == 23
    # Asked once more, the turn is computed as before, though but its last token is new.
    assert torch.equal(turns.ask(second), answer)
    assert (turns.reused, len(turns.logits)) == (23, 4)
    assert all(torch.equal(*both) for both in zip(turns.logits, logits, strict=True))
    # Taken back, it leaves no trace: another turn begins where it began, and what both begin with is computed again.
    turns.ask(torch.cat([first, ids((2, 5), (3, 4))], dim=1))
    assert turns.reused == 23
    # Within an answer there is a pass for every token.
    turns.ask(torch.cat([first[:, :22], ids((4, 9))], dim=1))
    assert turns.reused == 22
    turns.ask(torch.cat([first[:, :19], ids((4, 9))], dim=1))
    assert turns.reused == 0
    turns.ask(ids((5, 9)))
    assert turns.reused == 0


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_turn_that_was_broken_off_leaves_what_came_before(tiny, passes) -> None:
    turns, undisturbed = Turns(tiny), Turns(tiny)
    first = turns.ask(ids((1, 20)))
    undisturbed.ask(ids((1, 20)))
    second = torch.cat([first, ids((2, 9))], dim=1)
    turns.ask(second, fail_after=passes)
    assert torch.equal(turns.ask(second), undisturbed.ask(second))
    assert turns.reused == 23
    assert all(torch.equal(*both) for both in zip(turns.logits, undisturbed.logits, strict=True))


def test_one_whose_first_pass_was_broken_off_keeps_nothing(tiny) -> None:
    turns = Turns(tiny)
    turns.ask(ids((1, 20)), fail_after=0)
    assert turns.kept.tokens == 0
    turns.ask(ids((1, 20)))
    assert turns.reused == 0


def test_others_get_its_room_when_they_need_it(tiny) -> None:
    turns = Turns(tiny)
    first = turns.ask(ids((1, 90)))
    turns.ask(torch.cat([first, ids((2, 9))], dim=1))
    assert turns.reused == 93
    small = generated(Sequence(prepare(tiny, input_ids=ids((3, 60)), max_new_tokens=4, do_sample=False)))
    assert turns.kept.tokens
    large = generated(Sequence(prepare(tiny, input_ids=ids((3, 150)), max_new_tokens=4, do_sample=False)))
    assert len(small.new_ids) == len(large.new_ids) == 4
    turns.ask(torch.cat([first, ids((2, 9))], dim=1))
    assert turns.reused == 0


def test_several_conversations_take_the_room_of_the_one_that_waits_longest(tiny) -> None:
    several = [Turns(tiny) for _ in range(3)]
    for number, turns in enumerate(several):
        turns.ask(ids((number, 80)))
    for number, reused in ((1, 80), (0, 0), (1, 80), (2, 0)):
        several[number].ask(torch.cat([ids((number, 80)), ids((9, 3))], dim=1))
        assert several[number].reused == reused


def test_it_is_collected_with_its_conversation(tiny) -> None:
    turns = Turns(tiny)
    turns.ask(ids((1, 150)))
    idle = []
    IDLE.let_one_go(lambda cache: bool(idle.append(weakref.ref(cache))))
    assert any(one() is not None and one().get_seq_length() == 153 for one in idle)
    del turns
    gc.collect()
    assert all(one() is None or one().get_seq_length() != 153 for one in idle)
    threads = [threading.Thread(target=Turns(tiny).ask, args=(ids((seed, 80)),)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_states_that_cannot_be_cut_are_not_kept(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("jamba", torch.bfloat16), expert_memory="50%")
    turns = Turns(model)
    first = turns.ask(ids((1, 20)))
    turns.ask(torch.cat([first, ids((2, 9))], dim=1))
    assert (turns.reused, turns.kept.tokens) == (0, 0)


def test_a_window_that_has_moved_on_cannot_go_back(zoo_checkpoint, open_model) -> None:
    if reason := ZOO["gpt_oss"].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint("gpt_oss", torch.bfloat16), expert_memory="50%")
    turns = Turns(model)
    first = turns.ask(ids((1, 20)))
    turns.ask(torch.cat([first[:, :22], ids((2, 9))], dim=1))
    assert turns.reused == 0
    turns.ask(torch.cat([first[:, :22], ids((2, 9))], dim=1), fail_after=2)
    assert turns.kept.tokens == 0


def test_a_turn_computes_its_own_tokens_only(model, processors, data, monkeypatch) -> None:
    # A template that shows an answer as it was generated.
    marked = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}\n{% endif %}{% endfor %}"
    monkeypatch.setattr(processors.tokenizer, "chat_template", marked)
    conversation, anew = talk(model, processors), talk(model, processors, reuse=False)
    # Older releases find out where pictures are in a pass over the whole prompt.
    shown = prepare(model, input_ids=ids((1, 9)), max_new_tokens=1).kwargs["position_ids"].dim() == 3
    before = 0
    for number, text in enumerate(TURNS):
        images = [data / "sandal.png"] if shown and number == 1 else []
        answer = conversation.ask(text, images=images)
        assert answer.reused_tokens == before
        assert anew.ask(text, images=images).reused_tokens == 0
        before = answer.prompt_tokens + len(answer.token_ids) - 1


def test_asked_again_a_turn_is_answered_in_the_same_way(model, processors) -> None:
    conversation = talk(model, processors)
    for text in TURNS:
        answer = conversation.ask(text)
        assert conversation.retry().token_ids == answer.token_ids
    conversation.undo()
    assert conversation.ask(TURNS[-1]).token_ids == answer.token_ids


def test_beginnings_kept_for_all_answer_as_if_nothing_were_kept(model, processors) -> None:
    prefixes = Prefixes(1 << 28, piece=6)
    found: list[list[Completion]] = []
    for reuse in (prefixes, Prefixes(0, piece=6), prefixes.under("anna")):
        conversation = talk(model, processors, reuse=reuse)
        found.append([conversation.ask(text) for text in TURNS])
    assert len({tuple(answer.token_ids for answer in answers) for answers in found}) == 1
    assert [answer.reused_tokens for answer in found[1]] == [0, 0, 0]
    assert 0 < found[0][1].reused_tokens < found[0][2].reused_tokens


def test_a_full_context_leaves_turns_that_can_go_on(bundled, processors, open_model) -> None:
    conversation = talk(open_model(bundled, max_context=60), processors)
    answers = [conversation.ask(f"And {number} of them went up") for number in range(10)]
    forgot = [number for number, answer in enumerate(answers) if number and not answer.reused_tokens]
    assert forgot
    assert len(forgot) <= 4
    assert max(answer.prompt_tokens for answer in answers) < 60


def test_pictures_may_take_its_room(model, processors, data, monkeypatch) -> None:
    from coterie.generation import media_features

    conversation = talk(model, processors)
    conversation.ask(TURNS[0])
    asked = []

    def room() -> int:
        asked.append(conversation.ask)
        return 10 if len(asked) == 1 else 1 << 30

    monkeypatch.setattr(media_features, "decoding_room", room)
    assert conversation.ask("What is this?", images=[data / "sandal.png"]).reused_tokens == 0
    assert len(asked) == 2


def test_what_is_kept_is_what_was_shown(model, processors, data) -> None:
    prompt = build_inputs(processors, "What is this, and what was it before?", images=[data / "sandal.png"])
    prompt = dict(prompt.to(model.dtype))
    other = prompt | {"pixel_values": prompt["pixel_values"].flip(0)}
    turns, fresh = Turns(model), Turns(model)
    made = [turns.ask(one["input_ids"], **without_ids(one)) for one in (prompt, other)]
    assert turns.reused == 0
    assert torch.equal(made[1], fresh.ask(other["input_ids"], **without_ids(other)))


def without_ids(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "input_ids"}


class Stream:
    """Is given tokens, and does nothing with them."""

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "broken_off"), [("qwen3_moe", True), ("gpt_oss", False), ("gpt_oss", True), ("qwen3_vl_moe", False)]
)
def test_a_sequence_that_has_ended_goes_on_as_if_it_had_not(name, broken_off, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    logits: list[torch.Tensor] = []

    def begin(kept: KeptCache, new: int) -> Sequence:
        prepared = prepare_in_pieces(model, {"input_ids": ids((1, 20))}, max_new_tokens=new, do_sample=False)
        return Sequence(
            prepared,
            keeper=kept.begin(prepared),
            keep=lambda outputs: logits.append(last_logits(outputs, ids((1, 20)))),
        )

    expected = generated(begin(KeptCache(), 8)).ids
    whole, kept = list(logits), KeptCache()
    logits.clear()
    sequence = begin(kept, 20 if broken_off else 4)
    if broken_off:
        for _ in range(4):
            sequence.take(sequence.run())
        sequence.run()  # its token is in the cache, and nobody takes what it returned
        sequence.cancel()
    else:
        generated(sequence)
    # A sliding window cannot go back to where the pass began.
    assert sequence.may_go_on == (not broken_off or name != "gpt_oss")
    if not sequence.may_go_on:
        return
    found = kept.resume(sequence.ids[0, : sequence.position])
    assert found is not None
    sequence.go_on(found[0], request=sequence.request, stream=Stream(), keeper=found[1], most=8)
    assert torch.equal(generated(sequence).ids, expected)
    assert all(torch.equal(*both) for both in zip(logits, whole, strict=True))
    assert kept.resume(sequence.ids[0]) is None
