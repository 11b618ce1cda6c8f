"""What a configuration asks for is compared with the weights before it is allocated, and while it is built."""

import json
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.engine import load
from coterie.errors import CheckpointFileError, CoterieError, LoadError, MemoryBudgetError, UnsupportedError
from coterie.extraction import extract
from coterie.inspection import inspect
from engine.damage import copy_of, register


@pytest.fixture
def omni(zoo_checkpoint, tmp_path) -> Path:
    return copy_of(zoo_checkpoint("qwen3_omni", torch.bfloat16), tmp_path)


def change(directory: Path, **changes: object) -> Path:
    """Sets values at paths such as ``thinker_config__text_config__vocab_size``."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for place, value in changes.items():
        part = config
        *parents, name = place.split("__")
        for parent in parents:
            part = part[parent]
        part[name] = value
    text = json.dumps(config)
    path.write_text(text.ljust(path.stat().st_size))
    return path


TEXT, VISION, AUDIO = (f"thinker_config__{part}_config" for part in ("text", "vision", "audio"))
LARGE = [
    (f"{TEXT}__vocab_size", 60_000_000),
    (f"{TEXT}__hidden_size", 90_000),
    (f"{TEXT}__num_attention_heads", 100_000),
    (f"{TEXT}__num_key_value_heads", 65_536),
    (f"{TEXT}__head_dim", 10**6),
    (f"{TEXT}__moe_intermediate_size", 10**9),
    (f"{TEXT}__num_hidden_layers", 10**9),
    (f"{TEXT}__num_hidden_layers", 90_000),
    (f"{TEXT}__num_experts", 90_000),
    (f"{VISION}__num_position_embeddings", 30_000_000),
    (f"{VISION}__depth", 90_000),
    (f"{VISION}__hidden_size", 90_000),
    (f"{AUDIO}__max_source_positions", 200_000_000),
    (f"{AUDIO}__encoder_layers", 90_000),
    (f"{AUDIO}__d_model", 2**20),
    ("talker_config__code_predictor_config__num_hidden_layers", 90_000),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("place", "value"), LARGE)
def test_sizes_beyond_the_weights_are_refused_before_they_are_allocated(place, value, omni):
    path = change(omni, **{place: value})
    with pytest.raises(CoterieError) as caught:
        Checkpoint.open(omni)
    assert isinstance(caught.value, CheckpointFileError | UnsupportedError) or "needs" in str(caught.value)
    assert str(path) in str(caught.value) or "config.json" in str(caught.value)


OF_STORES = [
    (f"{TEXT}__vocab_size", 60_000_000, r"'thinker\..*' has the shape \(.*, .*needs \(60000000, 64\)"),
    (f"{TEXT}__hidden_size", 90_000, r"'thinker\..*' has the shape \(.*, .*needs \(128, 90000\)"),
    (f"{TEXT}__num_attention_heads", 100_000, r"self_attn.*' has the shape \(64, 64\), .*needs \(.*1600000.*\)"),
    (f"{VISION}__num_position_embeddings", 30_000_000, r"pos_embed.*' has the shape .*needs \(30000000, 32\)"),
    (f"{AUDIO}__max_source_positions", 200_000_000, r"bytes beside the weights, most of them for '.*audio_tower"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("place", "value", "words"), OF_STORES, ids=[place for place, _, _ in OF_STORES])
def test_a_store_with_such_a_configuration_is_refused_likewise(place, value, words, zoo_checkpoint, tmp_path):
    store = tmp_path / "store"
    extract(zoo_checkpoint("qwen3_omni", torch.bfloat16), store)
    path = register(change(store, **{place: value}))  # a publisher can make a manifest fit
    with pytest.raises(LoadError, match=words) as caught:
        load(store, expert_memory="50%")
    assert caught.value.path == path
    assert str(path) in str(caught.value)


def test_what_is_computed_beside_the_weights_counts_against_the_budget(omni):
    change(omni, **{f"{AUDIO}__max_source_positions": 6_000_000})
    inspect(omni)
    with pytest.raises(MemoryBudgetError) as caught:
        load(omni, memory="1MiB", max_context=16)
    with pytest.raises(MemoryBudgetError, match="beside the weights"):
        load(omni, memory=caught.value.minimum + 2**28, max_context=16)


@pytest.mark.parametrize("value", [0, -1, 9, 10**4])
def test_more_experts_per_token_than_there_are(value, zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_moe"), tmp_path)
    change(directory, num_experts_per_tok=value)
    with pytest.raises(UnsupportedError, match=rf"asks for {value} experts per token of the 8"):
        inspect(directory)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{bad", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("", "not valid JSON"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "twice"),
        ("[" * 5000, "deeper"),
        ('{"max_new_tokens": "x"}', "generation_config.json"),
        ('{"cache_config": 5, "watermarking_config": 5}', "generation_config.json"),
    ],
)
def test_a_generation_configuration_that_is_none(content, match, zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_moe"), tmp_path)
    path = directory / "generation_config.json"
    path.write_text(content)
    with pytest.raises(LoadError, match=match) as caught:
        load(directory, expert_memory="50%")
    assert caught.value.path == path


def test_attention_that_this_machine_does_not_have_is_told(zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_moe"), tmp_path)
    change(directory, attn_implementation="flash_attention_2")
    with pytest.warns(UserWarning, match="flash_attention_2"):
        model = load(directory, expert_memory="50%")
    assert model.config._attn_implementation == "sdpa"
