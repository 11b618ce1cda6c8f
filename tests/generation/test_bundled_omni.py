"""The bundled omni model: a word that it hears, it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3OmniMoeForConditionalGeneration

import coterie
from conftest import realigned
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking
from coterie.generation.speech import SPEECH_RATE, Speech, Voice, voices
from coterie.generation.wav_writer import wav_file
from coterie.profiles import Group, Profile, ProfileDatabase
from generation.conftest import BUNDLED

WORDS = Path(__file__).parents[1] / "data" / "words"
WORD = Sampling(max_new_tokens=6, greedy=True, seed=5)
VOICES = ["ada", "ben"]
PACKAGE = BUNDLED.with_name("bundled-omni")


def asked(processors: Processors, word: str):
    return chat_inputs(processors, [user_message("", audios=[WORDS / f"{word}.flac"])])


def said(model, processors: Processors, word: str, voice: Voice) -> Speech:
    inputs = asked(processors, word)
    return Speaking(model, processors.tokenizer, inputs, WORD, voice=voice, streamed=False).result()


def listened(ears, processors: Processors, samples: np.ndarray, path: Path) -> str:
    """The word that the bundled model hears."""
    with wav_file(path, SPEECH_RATE) as writer:
        writer.write(samples)
    inputs = build_inputs(processors, "", audios=[path])
    return complete(ears, processors.tokenizer, inputs, WORD).text.strip()


def test_its_thinker_is_the_bundled_model() -> None:
    whole, thinker = (json.loads((folder / "config.json").read_text()) for folder in (PACKAGE, BUNDLED))
    del thinker["architectures"], thinker["transformers_version"]
    assert whole["thinker_config"] == thinker


def test_the_package_stays_small() -> None:
    files = [path for folder in (BUNDLED, PACKAGE) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 70e6


def test_one_word_is_that_of_stock(bundled_omni, open_model) -> None:
    model = open_model("bundled-omni", expert_memory="25%")
    processors = Processors(bundled_omni)
    assert voices(model.config) == VOICES
    codes = heard_codes(model)
    mine = said(model, processors, "dog", Voice(name=VOICES[-1]))
    assert mine.completion.text == "dog"
    assert mine.finish_reason == "stop"
    stock = realigned(
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            bundled_omni, dtype=torch.bfloat16, experts_implementation="eager", local_files_only=True
        ).eval()
    )
    codes_of_stock = heard_codes(stock)
    torch.manual_seed(WORD.seed)
    ids, waveform = stock.generate(
        **asked(processors, "dog").to(torch.bfloat16), speaker=VOICES[-1], thinker_max_new_tokens=6,
        thinker_do_sample=False, thinker_eos_token_id=0, thinker_pad_token_id=0,
    )  # fmt: skip
    assert ids[0, -len(mine.completion.token_ids) :].tolist() == list(mine.completion.token_ids)
    assert len(codes) == len(codes_of_stock) == 1
    assert torch.equal(codes[0], codes_of_stock[0])
    assert np.array_equal(waveform.reshape(-1).float().numpy(), mine.samples)


def test_the_talkers_experts_are_counted(bundled_omni, open_model, tmp_path) -> None:
    model = open_model("bundled-omni", expert_memory="25%")
    codes = heard_codes(model)
    with model.coterie.record_profile(tmp_path / "profile.db"):
        said(model, Processors(bundled_omni), "cat", Voice(greedy=True))
    frames = codes[0].shape[-1]
    talker = model.coterie.stats().components["talker"]
    assert talker.hits + talker.misses == talker.requested > 0
    with ProfileDatabase(tmp_path / "profile.db") as database:
        profile = Profile.read(database)
    banks = [bank for bank in profile.banks if bank.component == "talker"]
    assert [bank.layer for bank in banks] == [0, 1]
    for bank in banks:
        table = profile.banks[bank]
        spoken = [profile.groups[index] == Group("speech", "unsorted", "generated") for index in table.groups.tolist()]
        assert table.tokens[spoken].sum() == frames  # the last one is the end, which is chosen and not passed on


def test_no_expert_of_the_talker_is_read_twice_for_an_answer(open_model) -> None:
    model = open_model("bundled-omni", expert_memory="25%")
    sampling = coterie.Sampling(greedy=True, max_new_tokens=8)
    coterie.speak(model, "Say: cat", sampling, voice=Voice(greedy=True)).result()
    stats = model.coterie.stats()
    talker = stats.components["talker"]
    experts = sum(bank.num_experts for bank in model.coterie.expert_banks if bank.key.component == "talker")
    assert talker.requested > experts >= talker.misses + stats.warmed > 0


@pytest.mark.slow
@pytest.mark.parametrize("voice", VOICES)
def test_words_come_back(voice, bundled_omni, open_model, tmp_path) -> None:
    model, ears = open_model("bundled-omni", expert_memory="50%"), open_model("bundled", expert_memory="100%")
    processors, of_ears = Processors(bundled_omni), Processors(BUNDLED)
    words = sorted(path.stem for path in WORDS.iterdir())
    assert len(words) == 32
    returned = []
    for word in words:
        made = said(model, processors, word, Voice(name=voice, greedy=True))
        heard = listened(ears, of_ears, made.samples, tmp_path / "word.wav") if len(made.samples) else ""
        if made.completion.text.strip() == word == heard:
            returned.append(word)
    assert len(returned) >= 24, sorted({*words} - {*returned})


def heard_codes(model) -> list[torch.Tensor]:
    """What the vocoder of a model is given from now on."""
    found: list[torch.Tensor] = []
    model.code2wav.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    return found
