"""What releases of transformers differ in about talkers."""

from __future__ import annotations

import pytest
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

MIRRORED = pytest.mark.skipif(
    "_prepare_generation_config" not in vars(Qwen3OmniMoeTalkerForConditionalGeneration),
    reason="in older releases the further codes of a frame are drawn, whatever is asked of the talker",
)
