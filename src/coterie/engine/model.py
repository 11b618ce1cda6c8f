"""A transformers model without experts, built of a source's dense part, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from coterie.engine.source import ModelSource
from coterie.errors import LoadError
from coterie.integration import Attachment, StreamingConfig, quicken_norms, quicken_tokens, round_as_stock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(source: ModelSource, attachment: Attachment) -> PreTrainedModel:
    """Has transformers build the model and load its dense part; the plug-in takes the experts out.

    Args:
        source: What is opened.
        attachment: Where the plug-in puts the banks.

    Raises:
        LoadError: If a weight is missing, left over or of another shape.
        UnsupportedError: If the experts or a router cannot be adapted.
    """
    generation_config = _generation_config(source)
    model: PreTrainedModel
    model, info = source.model_class.from_pretrained(
        None,
        config=source.config,
        state_dict=dict(source.dense),
        dtype=source.dtype,
        quantization_config=StreamingConfig(attachment.attach),
        experts_implementation="eager",  # for classes that choose more by it than their experts' arithmetic
        generation_config=generation_config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported, and refused just below with their names
    )
    if attachment.linears is not None:
        attachment.linears.fill()
    source.finish_loading()
    _check_loaded(model, info, attachment, source)
    model.config.name_or_path = str(source.directory)
    model.requires_grad_(False)
    round_as_stock(model)
    quicken_norms(model)
    quicken_tokens(model)
    return model


def _generation_config(source: ModelSource) -> Any:
    from transformers import GenerationConfig

    if (source.directory / "generation_config.json").exists():
        cls = getattr(source.model_class, "generation_config_class", None) or GenerationConfig
        return cls.from_pretrained(source.directory, local_files_only=True)
    return None


def _check_loaded(model: Any, info: dict[str, Any], attachment: Attachment, source: ModelSource) -> None:
    """No weight may be missing, left on the meta device, or initialised by chance."""
    if not attachment.banks:
        raise LoadError(
            "transformers loaded the model without the streaming plug-in.",
            advice="This release of transformers is not supported; please report it.",
        )
    for name, got, expected in sorted(info.get("mismatched_keys") or ()):
        raise _misshapen(name, got, expected, source)
    # Releases before 5.8 compare no shapes where a quantizer is at work, as the plug-in is.
    for name, parameter in model.named_parameters():
        expected = attachment.dense_shapes.get(name)
        if expected is not None and parameter.shape != expected:
            raise _misshapen(name, parameter.shape, expected, source)
    for kind, what in (
        ("missing_keys", "was in neither the dense weights nor the experts"),
        ("unexpected_keys", "belongs to nothing in the model"),
        ("conversion_errors", "could not be converted"),
        ("error_msgs", "could not be loaded"),
    ):
        names = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in info.get(kind) or ())
        if names:
            raise LoadError(
                f"{names[0]} of {source.name} {what}" + (f" (and {len(names) - 1} more)." if len(names) > 1 else "."),
                advice="Verify the store or download the checkpoint again.",
                tensor=names[0],
                names=names,
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise LoadError(f"{name} of {source.name} was not loaded.", advice="Please report it.", tensor=name)


def _misshapen(name: str, got: Iterable[int], expected: Iterable[int], source: ModelSource) -> LoadError:
    return LoadError(
        f"{name} of {source.name} has the shape {tuple(got)}, the model needs {tuple(expected)}.",
        advice="config.json and the weights do not belong together.",
        tensor=name,
        expected=tuple(expected),
        got=tuple(got),
    )
