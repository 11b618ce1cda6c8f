"""All that Coterie relies on inside transformers: with what is checked at loading, a tiny model from end to end."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from coterie.engine.loader import load
from coterie.engine.quiet import quiet_libraries
from coterie.extraction import extract
from coterie.generation.processors import scaled_ahead
from coterie.generation.sequence import Sequence
from coterie.generation.steps import generated
from coterie.hf.contract import Contract, Verdict, examine, expect
from coterie.hf.contracts import CONTRACTS as READING
from coterie.hf.contracts import EXACT, SPEED, place, tiny_config
from coterie.hf.generation_steps import last_logits, one_by_one, prepare
from coterie.integration import TokenLayer
from coterie.integration.contracts import CONTRACTS as RUNNING
from coterie.native import StageTimes, library
from coterie.passes.forwards import own, remove

_SIZES = {
    "vocab_size": 64, "hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
_PROMPT, _NEW = 8, 4

STEPS = "Answers are generated step by step, with the tokens that transformers' own loop gives."
_UTILS = "generation.utils"
_STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_UTILS, "GenerationMixin.generate", ("custom_generate",)),
    (_UTILS, "GenerationMixin._sample", ()),
    (_UTILS, "GenerationMixin._prefill", ("input_ids", "generation_config", "model_kwargs", "is_first_iteration")),
    (_UTILS, "GenerationMixin.prepare_inputs_for_generation", ("input_ids", "next_sequence_length")),
    (_UTILS, "GenerationMixin._update_model_kwargs_for_generation", ("outputs", "model_kwargs", "is_encoder_decoder")),
    ("generation.configuration_utils", "GenerationConfig.get_generation_mode", ()),
)
"""Module, name, parameters that are used by ``hf.generation_steps``."""

PICTURES = "Large pictures, which are scaled before the processor copies them, have the pixels of others."


@contextmanager
def _tiny_checkpoint() -> Iterator[Path]:
    from transformers import Qwen3MoeForCausalLM

    with tempfile.TemporaryDirectory(prefix="coterie-") as directory, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(tiny_config(**_SIZES)).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)  # so that it says more than one thing
        model.save_pretrained(Path(directory) / "checkpoint")
        yield Path(directory)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(path, expert_memory="100%", prefetch="off")
    try:
        yield model
    finally:
        model.coterie.close()


def _generate(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and the logits of each."""
    ids = torch.arange(1, _PROMPT + 1)[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=_NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


def _streamed_is_stock() -> None:
    from transformers import Qwen3MoeForCausalLM

    with _tiny_checkpoint() as directory:
        stock = Qwen3MoeForCausalLM.from_pretrained(
            directory / "checkpoint", dtype=torch.bfloat16, experts_implementation="eager"
        ).eval()
        for parameter in stock.parameters():
            parameter.data = parameter.data.clone()
        expected = _generate(stock)
        with _opened(directory / "checkpoint") as model:
            found = _generate(model)
            stats = model.coterie.stats()
    for ours, theirs in zip(found, expected, strict=True):
        expect(torch.equal(ours, theirs), "A streamed model computes otherwise than transformers' own.")
    counted = stats.prefill_tokens["text"], stats.decode_tokens["text"]
    expect(counted == (_PROMPT, _NEW - 1), f"{counted} tokens are counted for {(_PROMPT, _NEW - 1)}.")


def _decode_steps_are_native() -> None:
    if library() is None:
        return  # nothing is native, as the machine's diagnosis says
    with _tiny_checkpoint() as directory:
        extract(directory / "checkpoint", directory / "store", scheme="int4", dense_scheme="int4")
        with _opened(directory / "store") as model:
            layers = [one for one in model.modules() if isinstance(own(one), TokenLayer)]
            expect(len(layers) == 2, f"{len(layers)} of 2 layers have a native forward.")
            times = StageTimes()
            for layer in layers:
                forward: Any = own(layer)
                forward.times = times
            tokens, native = _generate(model)
            expect(times.passes == 2 * (_NEW - 1), f"{times.passes} of {2 * (_NEW - 1)} steps of layers were native.")
            for layer in layers:
                remove(layer, "native")
            again, stock = _generate(model)
    apart = float(((native - stock).float().norm(dim=-1) / stock.float().norm(dim=-1)).median())
    expect(
        bool((tokens == again).float().mean() > 0.5) and apart < 0.05,
        f"Native layers differ from the class's by {apart:.1%}.",
    )


def _generate_in_steps(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their logits, in our own loop."""
    prepared, logits = prepare(model, **options), list[torch.Tensor]()
    sequence = Sequence(prepared, keep=lambda outputs: logits.append(last_logits(outputs, prepared.ids)))
    return generated(sequence).ids, torch.cat(logits)


def _sequences_go_on_as_in_transformers() -> None:
    from transformers import Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(tiny_config(**_SIZES)).eval()
        ids = torch.arange(1, _PROMPT + 1)[None]
        expect(one_by_one(model, model.generation_config), "Models have a loop of their own, or another mode.")
        for wishes in ({"do_sample": False}, {"do_sample": True, "temperature": 2.0}, {"use_cache": False}):
            options = {"input_ids": ids, "max_new_tokens": _NEW, **wishes}
            torch.manual_seed(1)
            theirs = model.generate(**options, output_logits=True, return_dict_in_generate=True)
            torch.manual_seed(1)
            ours, logits = _generate_in_steps(model, **options)
            expect(torch.equal(ours, theirs.sequences), f"Its loop gives other tokens ({wishes}).")
            expect(torch.equal(logits, torch.cat(theirs.logits)), f"Its loop gives other logits ({wishes}).")


def _options_undo_settings() -> None:
    from transformers import GenerationConfig, Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = Qwen3MoeForCausalLM(tiny_config(**_SIZES)).eval()
    model.generation_config.stop_strings = ["a"]
    ids, config = torch.arange(1, _PROMPT + 1)[None], GenerationConfig(max_new_tokens=_NEW, stop_strings=["a"])
    prepared = prepare(model, input_ids=ids, generation_config=config, stop_strings=None)
    expect(prepared.config.stop_strings is None, "stop_strings=None beside a config is not heeded.")


def _pictures_are_scaled_alike() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    for size in ((310, 170), (40, 23), (112, 112)):  # too large, too small, and as it is
        picture = Image.effect_noise(size, 90).convert("RGB")
        theirs, ours = (
            processor(images=[one], return_tensors="pt") for one in (picture, scaled_ahead(processor, picture))
        )
        same = all(torch.equal(theirs[name], ours[name]) for name in ("image_grid_thw", "pixel_values"))
        expect(same, f"A picture of {size[0]} × {size[1]} pixels is not scaled as smart_resize says.")


GENERATION: tuple[Contract, ...] = (
    place("models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil", (), "generation.processors",
          essential=False),
    place("models.qwen2_vl.image_processing_pil_qwen2_vl", "smart_resize",
          ("height", "width", "factor", "min_pixels", "max_pixels"), "generation.processors", essential=False),
    Contract(name="pictures are scaled as smart_resize says", protects=PICTURES,
             follower="coterie.generation.processors", check=_pictures_are_scaled_alike, essential=False),
    place("models.qwen3_omni_moe.processing_qwen3_omni_moe", "_get_feat_extract_output_lengths", ("input_lengths",),
          "generation.placeholders", essential=False),
    *(place(*row, "hf.generation_steps", protects=STEPS, essential=False) for row in _STEPS),
    Contract(name="sequences go on as in transformers", protects=STEPS, follower="coterie.hf.generation_steps",
             check=_sequences_go_on_as_in_transformers),
    Contract(name="an option that is None undoes a setting", protects=STEPS, follower="coterie.generation.completion",
             check=_options_undo_settings, essential=False),
    Contract(name="a streamed model has the bits of stock", protects=EXACT, follower="coterie.engine.model",
             check=_streamed_is_stock),
    Contract(name="decode steps take the native way", protects=SPEED, follower="coterie.integration.token_layer",
             check=_decode_steps_are_native, essential=False),
)  # fmt: skip

CONTRACTS: tuple[Contract, ...] = (*READING, *RUNNING, *GENERATION)
"""All of them, in the order in which they are shown."""


def examine_transformers() -> tuple[Verdict, ...]:
    """Holds the installed release against all that is relied on; takes some seconds."""
    with warnings.catch_warnings(), quiet_libraries():
        warnings.simplefilter("ignore", FutureWarning)
        return examine(CONTRACTS)
