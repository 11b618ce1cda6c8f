"""What Coterie relies on inside transformers, with the release of this environment, and which releases there are.

None of it is promised by transformers. The checks are in `src`, as `coterie doctor --transformers` runs them, too: a
release that moves something is told what it moved, and which module has to follow.
"""

from __future__ import annotations

import re
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import GenerationMixin, PreTrainedModel, Qwen3MoeForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from coterie.generation.contracts import CONTRACTS, GENERATION
from coterie.hf.caches import is_cache
from coterie.hf.contract import examine
from coterie.hf.releases import TESTED
from coterie.integration.quantizer import StreamingQuantizer

ROOT = Path(__file__).resolve().parents[2]
NAMES = [contract.name for contract in CONTRACTS]
LOCKS = {"requirements-oldest.lock": 0, "requirements-between.lock": 1, "requirements.lock": -1}


@pytest.mark.parametrize("contract", CONTRACTS, ids=NAMES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_contract_is_kept(contract):
    (verdict,) = examine([contract])
    assert verdict.ok, f"transformers {transformers.__version__}: {verdict.problem} {contract.follower} has to follow."


def test_contracts_have_names_of_their_own_and_followers():
    assert len(set(NAMES)) == len(NAMES)
    for contract in CONTRACTS:
        assert (ROOT / "src" / Path(*contract.follower.split("."))).with_suffix(".py").exists(), contract.follower


def _no_cache_in_steps(monkeypatch):
    """The model keeps it for itself between what prepares a step and the step."""
    forward, prepare = Qwen3MoeForCausalLM.forward, Qwen3MoeForCausalLM.prepare_inputs_for_generation
    kept = {}

    def other_prepare(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        kept.update({name: inputs.pop(name) for name, value in list(inputs.items()) if is_cache(value)})
        return inputs

    monkeypatch.setattr(Qwen3MoeForCausalLM, "prepare_inputs_for_generation", other_prepare)
    monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", lambda self, *a, **k: forward(self, *a, **k, **kept))


def _always_a_cache(monkeypatch):
    own = Qwen3MoeForCausalLM.generate
    monkeypatch.setattr(
        Qwen3MoeForCausalLM, "generate", lambda self, *a, use_cache=None, **options: own(self, *a, **options)
    )


def _short_texts(monkeypatch):
    """Generating stops before there are too many tokens, whatever was asked for."""
    own = Qwen3MoeForCausalLM.generate
    monkeypatch.setattr(
        Qwen3MoeForCausalLM, "generate", lambda self, *a, **options: own(self, *a, **options | {"max_new_tokens": 1})
    )


def _another_common_forward(monkeypatch):
    monkeypatch.setattr(MixtralExperts, "forward", lambda self, hidden_states, top_k_index, top_k_weights: None)


def _plug_in_not_called(monkeypatch):
    monkeypatch.setattr(StreamingQuantizer, "_process_model_before_weight_loading", lambda self, model, **_: model)


def _layers_keep_a_count(monkeypatch):
    own = DynamicLayer.update

    def update(self, *args, **kwargs):
        self.seen = getattr(self, "seen", 0) + 1
        return own(self, *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", update)


def _attribute_gone(owner, name):
    return lambda monkeypatch: monkeypatch.delattr(owner, name)


def _pictures_of_another_size(monkeypatch):
    """The processor has a rule of its own."""
    module = import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    own = module.Qwen2VLImageProcessorPil.resize

    def resize(self, image, size, resample, factor, **options):
        return own(self, image, size, resample, 2 * factor, **options)

    monkeypatch.setattr(module.Qwen2VLImageProcessorPil, "resize", resize)


def _a_loop_that_does_more(monkeypatch):
    """Transformers' own takes the least likely token."""
    own = GenerationMixin._sample

    def sample(self, input_ids, logits_processor, **options):
        logits_processor.append(lambda ids, scores: -scores)
        return own(self, input_ids, logits_processor=logits_processor, **options)

    monkeypatch.setattr(GenerationMixin, "_sample", sample)


def _options_that_are_none_are_dropped(monkeypatch):
    own = GenerationMixin.generate

    def generate(self, *args, **options):
        return own(self, *args, **{name: value for name, value in options.items() if value is not None})

    monkeypatch.setattr(GenerationMixin, "generate", generate)


BREAKS = {
    "an option that is None undoes a setting": _options_that_are_none_are_dropped,
    "sequences go on as in transformers": _a_loop_that_does_more,
    "generation.utils.GenerationMixin._prefill is there": _attribute_gone(GenerationMixin, "_prefill"),
    "caches count their tokens": lambda patch: patch.setattr(DynamicLayer, "get_seq_length", lambda self: 7),
    "a layer of a cache is its keys and values": _layers_keep_a_count,
    "decode steps show their cache": _no_cache_in_steps,
    "too long a text is refused": _short_texts,
    "use_cache=False keeps nothing": _always_a_cache,
    "most experts classes share one forward": _another_common_forward,
    "the plug-in sees the skeleton before weights": _plug_in_not_called,
    "modeling_utils.PreTrainedModel._get_dtype_plan is there": _attribute_gone(PreTrainedModel, "_get_dtype_plan"),
    "conversion_mapping.get_model_conversion_mapping is there": _attribute_gone(
        import_module("transformers.conversion_mapping"), "get_model_conversion_mapping"
    ),
    "core_model_loading.MergeModulelist is there": lambda patch: patch.setattr(
        "transformers.core_model_loading.MergeModulelist", lambda other: None
    ),
    "pictures are scaled as smart_resize says": _pictures_of_another_size,
    "models.qwen2_vl.image_processing_pil_qwen2_vl.smart_resize is there": lambda patch: patch.setattr(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.smart_resize", lambda height, width: (28, 28)
    ),
    "configurations name sizes as they did": lambda patch: patch.setattr(
        "transformers.Qwen3MoeConfig.get_text_config", lambda self, **_: object()
    ),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_break_is_found(name, monkeypatch):
    """With a release that does it otherwise; the others are of the same kinds."""
    contract = CONTRACTS[NAMES.index(name)]
    assert examine([contract])[0].ok
    BREAKS[name](monkeypatch)
    (verdict,) = examine([contract])
    assert not verdict.ok
    assert verdict.problem


def test_experts_that_compute_otherwise_are_found(monkeypatch):
    own = Qwen3MoeExperts.forward
    monkeypatch.setattr(Qwen3MoeExperts, "forward", lambda self, *args: own(self, *args) * 1.5)
    verdicts = {verdict.name: verdict for verdict in examine(GENERATION)}
    assert not verdicts["decode steps take the native way"].ok


def test_no_release_outside_of_the_range_is_tested():
    (requirement,) = [
        parsed for text in metadata.requires("coterie") or [] if (parsed := Requirement(text)).name == "transformers"
    ]
    assert requirement.specifier.contains(transformers.__version__)
    assert all(requirement.specifier.contains(release) for release in TESTED)


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))


def test_the_oldest_release_in_ci_is_the_oldest_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (text,) = [text for text in project["dependencies"] if text.startswith("transformers")]
    lower = [one.version for one in Requirement(text).specifier if one.operator == ">="]
    assert [Version(pins("requirements-oldest.lock")["transformers"])] == [Version(one) for one in lower]


def test_what_is_said_to_be_tested_is_what_the_locks_pin():
    assert list(TESTED) == sorted(TESTED, key=Version)
    assert [pins(lock)["transformers"] for lock in LOCKS] == [TESTED[place] for place in LOCKS.values()]
