"""Prompts that begin as earlier ones did: the same tokens and logits, with less computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.prefixes import Prefixes, reuses_beginnings
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Sequence
from coterie.generation.steps import generated
from coterie.hf.generation_steps import last_logits, prepare, prepare_in_pieces
from coterie.spec import AdaptiveExperts
from zoo import ZOO

PIECE = 16


@pytest.fixture(scope="module", params=["bfloat16", "int4"])
def model(request: pytest.FixtureRequest, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model."""
    source = bundled
    if request.param == "int4":
        source = tmp_path_factory.mktemp("int4") / "store"
        extract(bundled, source, scheme="int4", dense_scheme="int4")
    opened = load(source, expert_memory="100%")
    yield opened
    opened.coterie.close()


@dataclasses.dataclass
class Answer:
    ids: torch.Tensor
    logits: torch.Tensor
    reused: int

    def __eq__(self, other: object) -> bool:
        """Whether tokens and logits are the same, to the bit."""
        return isinstance(other, Answer) and torch.equal(self.ids, other.ids) and torch.equal(self.logits, other.logits)


def answer(model: Any, inputs: Any, prefixes: Prefixes, salt: str = "", *, new: int = 3) -> Answer:
    logits: list[torch.Tensor] = []
    prepared = prepare_in_pieces(model, inputs, max_new_tokens=new, do_sample=False)
    keeper = prefixes.begin(prepared, salt)
    sequence = Sequence(
        prepared,
        keeper=keeper,
        piece=prefixes.piece,
        keep=lambda outputs: logits.append(last_logits(outputs, prepared.ids)),
    )
    generated(sequence)
    return Answer(sequence.new_ids, torch.cat(logits), sequence.reused)


def alone(model: Any, inputs: Any, **options: Any) -> Answer:
    return answer(model, inputs, Prefixes(0, piece=PIECE), **options)


def ids(*parts: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A prompt of random tokens: (seed, how many), one part after the other."""
    made = [torch.randint(9, 100, (1, count), generator=torch.Generator().manual_seed(seed)) for seed, count in parts]
    return {"input_ids": torch.cat(made, dim=1)}


def test_answers_are_those_from_scratch(model) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    prompts = [
        ids((1, 70)),
        ids((1, 70)),
        ids((1, 40), (2, 20)),
        ids((1, 40), (2, 40)),
        ids((1, 64)),
        ids((1, 65)),
        ids((3, 9)),
    ]
    got = [answer(model, prompt, prefixes) for prompt in prompts]
    assert [one.reused for one in got] == [0, 64, 32, 48, 48, 64, 0]
    assert got == [alone(model, prompt) for prompt in prompts]
    assert (prefixes.counts.prompts, prefixes.counts.hits, prefixes.counts.tokens) == (7, 5, 256)
    assert prefixes.counts.seconds > 0


def test_what_the_model_keeps_of_another_sequence_is_not_taken_for_ones_own(model) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    answer(model, ids((1, 40)), prefixes)
    prompt = ids((1, 40), (2, 40))
    expected = alone(model, prompt)
    kept = [vars(one) for one in (model, *model.children()) if "rope_deltas" in vars(one)]
    assert kept
    for space in kept:
        # As after a search over three sequences with pictures.
        space["rope_deltas"] = torch.tensor([[5], [6], [7]])
    got = answer(model, prompt, prefixes)
    assert got.reused == 32
    assert got == expected


def test_what_was_generated_is_not_taken_for_what_is_read(model) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    first = answer(model, ids((1, 20)), prefixes, new=20)
    whole = {"input_ids": torch.cat([ids((1, 20))["input_ids"], first.ids[None]], dim=1)}
    got = answer(model, whole, prefixes)
    assert got.reused == PIECE
    assert got == alone(model, whole)


def test_a_prompt_that_is_given_up_leaves_what_was_computed(model) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    prepared = prepare_in_pieces(model, ids((1, 70)), max_new_tokens=3, do_sample=False)
    sequence = Sequence(prepared, keeper=prefixes.begin(prepared), piece=PIECE)
    for _ in range(2):
        sequence.take(sequence.run())
    sequence.cancel()
    got = answer(model, ids((1, 70)), prefixes)
    assert got.reused == 2 * PIECE
    assert got == alone(model, ids((1, 70)))


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3", "mixtral"])
def test_other_families(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    assert reuses_beginnings(model)
    prefixes = Prefixes(1 << 30, piece=PIECE)
    for prompt, reused in ((ids((1, 50)), 0), (ids((1, 50)), 48), (ids((1, 40), (2, 7)), 32)):
        got = answer(model, prompt, prefixes)
        assert got.reused == reused
        assert got == alone(model, prompt)


@pytest.mark.parametrize("name", ["jamba", "qwen3_next", "minimax"])
def test_states_that_go_on_with_every_token_are_not_kept(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    assert not reuses_beginnings(model)
    prefixes = Prefixes(1 << 30, piece=PIECE)
    assert answer(model, ids((1, 50)), prefixes) == answer(model, ids((1, 50)), prefixes)
    assert (prefixes.nbytes, prefixes.counts.prompts) == (0, 0)


def test_pictures_and_sounds_are_told_apart(bundled, processors: Processors, data: Path, open_model) -> None:
    model = open_model(bundled)
    prefixes = Prefixes(1 << 30, piece=PIECE)
    text = " and what is this?" * 6

    def prompt(*files: str) -> Any:
        images = [data / file for file in files if file.endswith("png")]
        audios = [data / file for file in files if file.endswith("wav")]
        return build_inputs(processors, text, images=images, audios=audios).to(model.dtype)

    sandal, both = prompt("sandal.png"), prompt("sandal.png", "dog.wav")
    if prepare(model, **sandal, max_new_tokens=1).kwargs["position_ids"].dim() == 2:
        pytest.skip("this transformers finds out where pictures are in a pass over the whole prompt")
    got = [answer(model, one, prefixes) for one in (sandal, sandal, both, both, prompt("dog.wav"))]
    assert got == [alone(model, one) for one in (sandal, sandal, both, both, prompt("dog.wav"))]
    # Positions are those of the whole prompt: but for rounding, pieces come to the same.
    for prompt_of, pieces in ((sandal, got[0]), (both, got[2])):
        whole = answer(model, prompt_of, Prefixes(0, piece=1 << 20))
        assert (whole.logits[0] - pieces.logits[0]).abs().max() < 0.1 * whole.logits[0].std()
    assert got[0].reused == 0
    assert got[1].reused % PIECE == 0
    assert got[1].reused > int((sandal["input_ids"] == model.config.image_token_id).sum())
    assert got[3].reused > got[1].reused
    assert got[4].reused == 0
    # The same tokens, another picture.
    other = dict(sandal) | {"pixel_values": sandal["pixel_values"].flip(0)}
    seen = answer(model, other, prefixes)
    assert seen.reused < got[1].reused
    assert seen == alone(model, other)


def test_media_that_cannot_be_told_apart_are_computed_as_a_whole(bundled, processors, data, open_model) -> None:
    model = open_model(bundled)
    inputs = dict(build_inputs(processors, "what?" * 20, images=[data / "sandal.png"]).to(model.dtype))
    model.config.model_type, before = "something_else", model.config.model_type
    prefixes = Prefixes(1 << 30, piece=PIECE)
    assert answer(model, inputs, prefixes) == answer(model, inputs, prefixes)
    assert prefixes.nbytes == 0
    model.config.model_type = before


@pytest.fixture
def tiny(zoo_checkpoint, open_model):
    return open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")


def test_who_has_another_salt_finds_nothing(tiny) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    found = [answer(tiny, ids((1, 50)), prefixes, salt).reused for salt in ("anna", "bert", "anna", "")]
    assert found == [0, 0, 48, 0]
    prefixes.clear("anna")
    assert [answer(tiny, ids((1, 50)), prefixes, salt).reused for salt in ("anna", "bert")] == [0, 48]


def test_memory_is_bounded_and_given_back(tiny) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    answer(tiny, ids((1, 50)), prefixes)
    each = prefixes.nbytes // 3
    prefixes.limit = 4 * each + 9
    for seed in range(2, 6):
        answer(tiny, ids((seed, 50)), prefixes)
        assert prefixes.nbytes <= prefixes.limit
    assert len(prefixes) == 4
    assert prefixes.shrink(each) == 3 * each
    prefixes.limit = 0
    assert (prefixes.nbytes, len(prefixes)) == (0, 0)
    assert answer(tiny, ids((1, 50)), prefixes).reused == 0
    assert prefixes.nbytes == 0


def test_what_is_computed_with_fewer_experts_is_nobody_elses(tiny) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    with tiny.coterie.adapt_experts(AdaptiveExperts.of("gate:0.9", 2)):
        answer(tiny, ids((1, 50)), prefixes)
    assert prefixes.nbytes == 0
    answer(tiny, ids((1, 50)), prefixes)
    with tiny.coterie.adapt_experts(AdaptiveExperts.of("gate:0.9", 2)):
        assert answer(tiny, ids((1, 50)), prefixes).reused == 0


def test_another_model_has_its_own(tiny, zoo_checkpoint, open_model) -> None:
    prefixes = Prefixes(1 << 30, piece=PIECE)
    answer(tiny, ids((1, 50)), prefixes)
    with pytest.raises(UsageError):
        answer(open_model(zoo_checkpoint("mixtral")), ids((1, 50)), prefixes)
    with pytest.raises(UsageError):
        Prefixes(100, piece=0)


def test_a_completion_says_what_it_reused(bundled, processors, open_model) -> None:
    model = open_model(bundled)
    prefixes = Prefixes(1 << 30, piece=PIECE)
    inputs = build_inputs(processors, "And it came to pass, " * 8)
    sampling = Sampling(max_new_tokens=4, seed=3)
    first, again, salted = (
        complete(model, processors.tokenizer, inputs, sampling, reuse=reuse)
        for reuse in (prefixes, prefixes, prefixes.under("anna"))
    )
    assert first.token_ids == again.token_ids == salted.token_ids
    assert (first.reused_tokens, salted.reused_tokens) == (0, 0)
    assert again.reused_tokens == (again.prompt_tokens - 1) // PIECE * PIECE
