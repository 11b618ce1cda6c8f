"""A model that sees, hears and speaks lives in a budget that has no room for all of its parts at once."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3OmniMoeConfig

from coterie.extraction import extract
from harness.cgroup import run_in_cgroup, why_unavailable
from zoo import ZOO
from zoo.omni import omni_config
from zoo.sizes import TOKENS
from zoo.weights import build

MIB = 1 << 20
REASON = why_unavailable()
CONTEXT = 1024
PARTS = {"thinker.audio_tower", "thinker.visual", "talker", "code2wav"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]

PROGRAM = """
import json, sys, threading, time, warnings
warnings.simplefilter("ignore")
import torch, coterie
from coterie.plan.machine import process_memory

torch.manual_seed(0)
path, memory, context, pictures, frames, ends = json.loads(sys.argv[1])
model = coterie.load(path, memory=memory, max_context=context, threads=1)
runtime, plan = model.coterie, model.coterie.plan
config = model.config
thinker = config.thinker_config
image, audio = thinker.image_token_id, thinker.audio_token_id
text = torch.arange(context - 200) % 60 + 3
begin = torch.tensor([config.im_start_token_id, config.user_token_id, 3])
end = torch.tensor([config.im_end_token_id, config.im_start_token_id, config.assistant_token_id, 3])
most = {}

def watched(name, **options):
    over, seen = threading.Event(), [0]
    def watch():
        while not over.wait(0.002):
            seen[0] = max(seen[0], process_memory().total)
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return model.generate(**options, thinker_do_sample=False, talker_do_sample=False)
    finally:
        over.set()
        watching.join()
        most[name] = seen[0]

def asked(*parts):
    ids = torch.cat([begin, *parts, end])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

words = {"thinker_max_new_tokens": 24}
wide = torch.cat([torch.tensor([thinker.vision_start_token_id]), torch.full((pictures * pictures // 4,), image),
                  torch.tensor(ends[:1])])
loud = torch.cat([torch.tensor([thinker.audio_start_token_id]), torch.full((frames // 100 * 13,), audio),
                  torch.tensor(ends[1:])])
vision = thinker.vision_config
media = {
    "pixel_values": torch.randn(pictures ** 2, 3 * vision.temporal_patch_size * vision.patch_size ** 2).bfloat16(),
    "image_grid_thw": torch.tensor([[1, pictures, pictures]]),
    "input_features": torch.randn(1, thinker.audio_config.num_mel_bins, frames).bfloat16(),
    "feature_attention_mask": torch.ones(1, frames, dtype=torch.int64),
}
answers = []
for turn in range(2):
    answers.append(watched("text", **asked(text), **words, return_audio=False).tolist())
    answers.append(watched("encoding", **asked(wide, loud, text[:64]), **media, **words, return_audio=False).tolist())
    ids, sound = watched("speaking", **asked(wide, loud, text[:64]), **media, **words, talker_max_new_tokens=33,
                          talker_min_new_tokens=33)
    answers.append([ids.tolist(), float(sound.abs().sum())])
stats = runtime.stats().to_dict()
print(json.dumps({"most": most, "answers": answers, "parts": stats["parts"], "by_phase": plan.by_phase,
                  "arena": plan.arena, "lent": plan.lent, "margin": plan.margin, "libraries": plan.libraries,
                  "activations": plan.activations, "experts": runtime.cache.total_bytes,
                  "rows": runtime.parts is not None and runtime.parts.rows is not None}))
"""


def middle_sized() -> Qwen3OmniMoeConfig:
    """Encoders of 70 MiB, 90 MiB of what speaks, a table of 98 MiB, 288 MiB of experts."""
    config: dict[str, Any] = omni_config().to_dict()
    thinker, talker = config["thinker_config"], config["talker_config"]
    wide = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "num_hidden_layers": 6}
    rope = {"rope_parameters": thinker["text_config"]["rope_parameters"] | {"mrope_section": [16, 8, 8]}}
    thinker["text_config"] |= wide | rope | {
        "num_experts": 32, "moe_intermediate_size": 512, "vocab_size": 100_000, "max_position_embeddings": 4096,
    }  # fmt: skip
    thinker["vision_config"] |= {"depth": 8, "hidden_size": 384, "intermediate_size": 1536, "num_heads": 6,
                                 "out_hidden_size": 512, "num_position_embeddings": 1024}  # fmt: skip
    thinker["audio_config"] |= {"encoder_layers": 8, "d_model": 384, "encoder_attention_heads": 6,
                                "encoder_ffn_dim": 1536, "output_dim": 512, "max_source_positions": 1500,
                                "downsample_hidden_size": 64}  # fmt: skip
    talker["text_config"] |= wide | rope | {
        "num_hidden_layers": 3, "num_experts": 16, "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 2048, "max_position_embeddings": 4096,
    }  # fmt: skip
    for part in (thinker["text_config"], talker["text_config"], talker["code_predictor_config"]):
        part.pop("layer_types", None)  # of fewer layers
    talker["code_predictor_config"] |= wide | {"num_hidden_layers": 4, "intermediate_size": 2048}
    talker["thinker_hidden_size"], talker["accept_hidden_layer"] = 512, 3
    config["code2wav_config"] |= {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8,
                                  "intermediate_size": 1024, "num_hidden_layers": 4, "upsample_rates": [8, 5, 4, 3],
                                  "upsampling_ratios": [2, 2], "decoder_dim": 512}  # fmt: skip
    return Qwen3OmniMoeConfig(**config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("phases")
    build(ZOO["qwen3_omni"].model_class, middle_sized(), torch.bfloat16).save_pretrained(root / "checkpoint")
    extract(root / "checkpoint", root / "store")
    shutil.rmtree(root / "checkpoint")
    yield root / "store"
    shutil.rmtree(root)


def run(store: Path, memory: int) -> dict[str, Any]:
    ends = [TOKENS["vision_end"], TOKENS["audio_end"]]
    settings = json.dumps([str(store), memory, CONTEXT, 32, 800, ends])
    found = run_in_cgroup(
        [sys.executable, "-c", PROGRAM, settings], memory, env={"OMP_NUM_THREADS": "1"}, timeout_s=1200
    )
    assert not found.killed
    assert found.returncode == 0, found.stderr[-3000:]
    assert max(found.resident, found.high_water) <= memory, (found.resident / MIB, found.high_water / MIB)
    told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return told


def test_each_phase_stays_within_what_was_planned_for_it(store: Path) -> None:
    memory = 1000 * MIB
    told = run(store, memory)
    assert told["by_phase"]
    assert told["rows"]
    assert set(told["parts"]) == PARTS
    # With all parts in memory, experts would have next to nothing.
    assert sum(one["nbytes"] for one in told["parts"].values()) > 100 * MIB
    assert told["arena"] > told["lent"]["speaking"] > told["lent"]["encoding"] > 0
    for name, held in told["most"].items():
        assert held <= memory, (name, held / MIB)
    # What the budget allows is also used: a ceiling far above what is held would pass too.
    assert min(told["most"].values()) > 0.8 * (memory - told["margin"])
    assert [one["reads"] for _, one in sorted(told["parts"].items())] == [2, 2, 4, 4]
    # What is in memory at a time changes no answer.
    assert told["answers"][:3] == told["answers"][3:]
    whole = run(store, 4096 * MIB)
    assert not whole["by_phase"]
    assert whole["answers"] == told["answers"]
