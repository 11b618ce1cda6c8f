"""Mutated configurations: a result, or an error of Coterie. ``COTERIE_FUZZ=50`` tries 10,000.

Checkpoints are opened up to the skeleton, on which nothing is allocated; some are loaded, and what loads is asked for a
token.
"""

import json
import random
import warnings
from pathlib import Path

import pytest
import torch

import coterie
from coterie.checkpoint import Checkpoint
from coterie.generation.one_sequence import files_named
from engine.damage import copy_of
from fuzzing import Watch, cases, mutate, scramble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14_400), pytest.mark.filterwarnings("ignore::UserWarning")]

EXTRA = (
    "attn_implementation", "experts_implementation", "transformers_weights", "quantization_config", "quantization",
    "auto_map", "dtype", "torch_dtype", "rope_parameters", "rope_scaling", "layer_types", "mlp_layer_types", "id2label",
    "num_labels", "fusion_config", "problem_type", "tie_word_embeddings", "architectures", "model_type", "pad_token_id",
    "num_nextn_predict_layers", "use_cache", "return_dict", "output_attentions", "is_encoder_decoder",
    "chunk_size_feed_forward",
)  # fmt: skip
FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_omni", "glm4_moe")
LOADED = 10
DEPTH = 4


def configurations(good: bytes, count: int):
    for case in range(count):
        rng = random.Random(case)
        if rng.random() < 0.95:
            value = json.loads(good)
            part = value
            for _ in range(DEPTH):  # into one of its parts, else most changes would hit their few names only
                inner = [item for item in part.values() if isinstance(item, dict) and item]
                if not inner or rng.random() < 0.4:
                    break
                part = rng.choice(inner)
            mutate(part, rng, extra=EXTRA)
            yield case, json.dumps(value).encode("utf-8", "surrogatepass")
        else:
            yield case, scramble(good, rng)


@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_configurations(family, zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint(family), tmp_path)
    path = directory / "config.json"
    watch = Watch()
    for case, content in configurations(path.read_bytes(), cases(200) // len(FAMILIES)):
        path.write_bytes(content)
        watch.run(case, lambda: opened(directory))
        if case % LOADED == 0:
            watch.run(case, lambda: loaded(directory))
    watch.check()


def opened(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Checkpoint.open(directory)


def loaded(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with coterie.load(directory, expert_memory="50%", max_context=64) as model, files_named(model):
            ids = torch.arange(1, 6)[None]
            voice = {"return_audio": False} if getattr(model, "has_talker", False) else {}
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, **voice
            )
