"""The plug-in through which transformers builds a model whose experts are never allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coterie.hf.releases import moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

with moved(__name__):
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

Attach = Callable[["PreTrainedModel"], None]

METHOD = "coterie"
"""Our name among transformers' quantization methods."""


class StreamingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Carries what is done to the skeleton before weights are loaded.

    Args:
        attach: Takes the experts out of the model and puts streamed banks in their place.
    """

    def __init__(self, attach: Attach | None = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.attach = attach

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamingConfig:
        # transformers copies the model's configuration, and with it this object; the copy needs no access.
        return StreamingConfig()

    def to_dict(self) -> dict[str, Any]:
        """The serialisable part: only the method's name."""
        return {"quant_method": self.quant_method}


class StreamingQuantizer(HfQuantizer):  # type: ignore[misc]
    """Hands the skeleton to ``StreamingConfig.attach``. Nothing is quantised."""

    requires_calibration = False

    def __init__(self, quantization_config: StreamingConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # "Pre-quantized" is how transformers calls weights that it loads as they are.
        self.pre_quantized = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.quantization_config.attach is not None:
            self.quantization_config.attach(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """A streamed model cannot be saved."""
        return False

    @property
    def is_trainable(self) -> bool:
        """A streamed model cannot be trained."""
        return False


def register() -> None:
    """Makes the plug-in known to transformers; doing it again changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(StreamingConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(StreamingQuantizer)


def strip_plugin_marks(model: PreTrainedModel) -> None:
    """Removes the traces of the plug-in: the marks change arithmetic in some models (jamba, falcon_mamba)."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is None:
            continue
        for name in ("_is_quantized", "quantization_config"):
            if name in getattr(config, "__dict__", {}):
                delattr(config, name)
    for name in ("hf_quantizer", "quantization_method"):
        if name in model.__dict__:
            delattr(model, name)
    model.is_quantized = False
