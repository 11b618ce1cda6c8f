import shutil

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import BatchFeature, GenerationConfig
from transformers.utils import logging

from coterie.bench.times import generate
from coterie.engine.loader import load
from coterie.errors import CoterieError, LoadError, UnsupportedError
from coterie.generation.answers import AnswerReader
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.one_sequence import files_named
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.spec import ExpertsSelected
from zoo import MATRIX
from zoo.tokenizer import add_tokenizer

OLD = Version(transformers.__version__) < Version("5.8")

OTHERS = [
    {"num_return_sequences": 2, "do_sample": True},
    {"num_beams": 2, "num_beam_groups": 2},
    {"penalty_alpha": 0.6},
    {"dola_layers": "low"},
    {"constraints": [1]},
    {"force_words_ids": [[5]]},
    {"cache_implementation": "quantized"},
    {"cache_implementation": "offloaded_static"},
    {"is_assistant": True},
]
DONE = [
    {"num_beams": 3},
    {"num_beams": 2, "do_sample": True},
    {"prompt_lookup_num_tokens": 3},
    {"cache_implementation": "static"},
    {"return_dict_in_generate": True, "output_scores": True},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 3},
]


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="100%")
    yield opened
    opened.coterie.close()


@pytest.fixture
def settings(model):
    """Has the model want something else."""
    own = model.generation_config

    def want(**values):
        model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, **values)

    yield want
    model.generation_config = own


def ask(model, processors, on_text=None, **options):
    inputs = build_inputs(processors, "And it came to pass")
    wishes = Sampling(max_new_tokens=6, seed=1, **options)
    return inputs, complete(model, processors.tokenizer, inputs, wishes, on_text=on_text)


@pytest.mark.parametrize("values", OTHERS, ids=lambda values: next(iter(values)))
def test_what_one_sequence_cannot_do_is_refused_by_name(model, processors, settings, values) -> None:
    settings(**values)
    with pytest.raises(UnsupportedError) as refused:
        ask(model, processors)
    assert refused.value.key in values
    assert f"{refused.value.key} = " in str(refused.value)
    assert refused.value.path.name == "generation_config.json"


@pytest.mark.parametrize("values", DONE, ids=lambda values: next(iter(values)))
def test_what_it_can_do_is_what_generate_does(model, processors, settings, values) -> None:
    if OLD and "cache_implementation" in values:
        pytest.skip("this class has no static cache in early releases")
    settings(**values)
    inputs, answer = ask(model, processors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = model.generate(**inputs, max_new_tokens=6)
    expected = getattr(made, "sequences", made)[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(answer.token_ids) == expected
    assert answer.text == processors.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("values", [{}, {"num_beams": 2}], ids=["steps", "beams"])
def test_stop_strings_of_the_model_end_as_in_generate(model, processors, settings, values, caplog) -> None:
    _, whole = ask(model, processors, greedy=True)
    stop = processors.tokenizer.decode(whole.token_ids[2])
    settings(stop_strings=[stop], **values)
    logging.warning_once.cache_clear()
    inputs, answer = ask(model, processors, greedy=True)
    stock = model.generate(**inputs, max_new_tokens=6, do_sample=False, tokenizer=processors.tokenizer)
    assert list(answer.token_ids) == stock[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(answer.token_ids) < 6
    assert answer.finish_reason == "stop"
    assert "deprecated" not in caplog.text
    assert "will be removed" not in caplog.text


@pytest.mark.parametrize("values", [{}, {"num_beams": 2}], ids=["steps", "beams"])
def test_an_encoders_answer_begins_after_the_decoders_first_token(zoo_checkpoint, open_model, tmp_path, values) -> None:
    directory = shutil.copytree(zoo_checkpoint("switch_transformers"), tmp_path / "model")
    add_tokenizer(directory, chat=False)
    model = open_model(directory)
    model.generation_config.update(**values)
    given = MATRIX["switch_transformers"].inputs(seed=2)
    inputs = BatchFeature({name: given[name] for name in ("input_ids", "attention_mask")})
    answer = complete(model, Processors(directory).tokenizer, inputs, Sampling(max_new_tokens=3, greedy=True))
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert list(answer.token_ids) == expected[0, 1:].tolist()


def test_texts_of_the_caller_end_before_them(model, processors) -> None:
    _, whole = ask(model, processors, greedy=True)
    stop = processors.tokenizer.decode(whole.token_ids[2:4])
    _, answer = ask(model, processors, greedy=True, stop=("never said", stop))
    assert answer.token_ids == whole.token_ids[:4]
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"


MARK = "<|vision_start|>"


@pytest.mark.parametrize(
    ("stop", "length", "said"),
    [(MARK, 2, " a"), (f" a{MARK} b", 3, ""), (" a b", 6, f" a{MARK} b a{MARK} b")],
    ids=["the mark", "across the mark", "only without it"],
)
def test_texts_with_marks_of_an_answer_end_it_too(model, processors, settings, stop, length, said) -> None:
    prompt, a, mark, b = (processors.tokenizer.encode(text)[-1] for text in (" pass", " a", MARK, " b"))
    following = {prompt: a, a: mark, mark: b, b: a}
    settings(sequence_bias=[[[before, after], 1e4] for before, after in following.items()])
    inputs = build_inputs(processors, "And it came to pass")
    wishes = Sampling(max_new_tokens=6, greedy=True, stop=(stop,))
    reader = AnswerReader(marks=(MARK,))
    answer = complete(model, processors.tokenizer, inputs, wishes, reader=reader)
    assert answer.token_ids == (a, mark, b, a, mark, b)[:length]
    assert answer.text == said
    assert answer.finish_reason == ("length" if length == 6 else "stop")


def test_the_end_of_the_time_is_told_apart(model, processors, settings) -> None:
    settings(max_time=1e-9)
    _, answer = ask(model, processors)
    assert (len(answer.token_ids), answer.finish_reason) == (1, "time")


def test_a_measurement_goes_on_to_its_length(model, processors, settings) -> None:
    settings(stop_strings=["e", "a", " "], max_time=1e-9)
    own = model.generation_config
    ids, _ = generate(model, build_inputs(processors, "And it")["input_ids"], 6)
    assert len(ids) == 6
    assert model.generation_config is own
    settings(num_beams=2)
    with pytest.raises(UnsupportedError, match="num_beams"):
        generate(model, build_inputs(processors, "And it")["input_ids"], 6)


def test_what_transformers_raises_over_settings_names_the_file(model, processors, settings) -> None:
    settings(bad_words_ids=[[10**6]])
    with pytest.raises(LoadError, match=r"settings in .*generation_config\.json: .*10000"):
        ask(model, processors)


@pytest.mark.skipif(OLD, reason="early releases do it")
def test_a_setting_that_fails_while_the_model_runs_once_more(model, processors, settings) -> None:
    settings(guidance_scale=1.5)  # fails in stock as well, with this class
    with pytest.raises(LoadError, match=r"generation_config\.json"):
        ask(model, processors)


@pytest.mark.parametrize("seed", [None, 1])
def test_what_drawing_raises_over_settings_names_the_file(model, processors, settings, seed) -> None:
    settings(do_sample=True, temperature=1e-40)
    with pytest.raises(LoadError, match=r"settings in .*generation_config\.json: .*probability"):
        complete(model, processors.tokenizer, build_inputs(processors, "And it"), Sampling(seed=seed))


class Misusing:
    """An observer that fails in torch."""

    def on_event(self, event: object) -> None:
        if isinstance(event, ExpertsSelected):
            torch.einsum("ij", torch.zeros(2))


def test_what_a_caller_does_with_torch_is_the_callers(model, processors) -> None:
    with pytest.raises(RuntimeError, match="einsum") as raised:
        ask(model, processors, on_text=lambda text: torch.einsum("ij", torch.zeros(2)))
    assert not isinstance(raised.value, CoterieError)
    model.coterie.add_observer(observer := Misusing())
    try:
        with pytest.raises(RuntimeError, match="einsum") as raised:
            ask(model, processors)
    finally:
        model.coterie.remove_observer(observer)
    assert not isinstance(raised.value, CoterieError)


def test_other_errors_are_left_alone(model) -> None:
    with pytest.raises(ValueError, match="ours"), files_named(model):
        raise ValueError("ours")
    with pytest.raises(TypeError, match="positional"), files_named(model):
        files_named(model, 3)
    with pytest.raises(RuntimeError, match="allocate"), files_named(model):
        model(torch.zeros(1, dtype=torch.int64).expand(2**50)[None])


def test_what_a_model_s_class_raises_names_its_configuration(model) -> None:
    with (
        pytest.raises(LoadError, match=r"fails with .*config\.json: IndexError: .*range") as caught,
        files_named(model),
    ):
        model(torch.tensor([[10**7]]))
    assert caught.value.path.name == "config.json"
