"""A transformers model without experts, built of a source's dense part, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from coterie.engine.caller import warn_caller
from coterie.engine.parts import Parts
from coterie.engine.source import ModelSource
from coterie.errors import LoadError, MemoryBudgetError, UnsupportedError
from coterie.hf.bank_sizes import bank_sizes
from coterie.hf.configs import read_config
from coterie.hf.foreign import foreign
from coterie.hf.generation_config import read_generation_config
from coterie.hf.implementations import unavailable_attention
from coterie.hf.shapes import check_dense_shapes, rest_nbytes
from coterie.hf.skeleton import bounded_parts
from coterie.integration import Attachment, StreamingConfig, install_native_layers, install_native_norms, round_as_stock
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(
    source: ModelSource, attachment: Attachment, room: int | None = None, parts: Parts | None = None
) -> PreTrainedModel:
    """Has transformers build the model and load its dense part; the plug-in takes the experts out.

    Args:
        source: What is opened.
        attachment: Where the plug-in puts the banks.
        room: Bytes that there are for what is computed beside the weights, such as tables of positions; None for no
            limit.
        parts: What comes and goes of it, or None if everything stays.

    Raises:
        LoadError: If a weight is missing, left over or of another shape, or the generation settings cannot be used.
        MemoryBudgetError: If there is not room enough.
        UnsupportedError: If the experts or a router cannot be adapted.
    """
    path = source.directory / "config.json"
    settings = read_generation_config(
        source.directory, getattr(source.model_class, "generation_config_class", None) or None
    )
    _warn_attention(source)
    sizes = bank_sizes(source.model_class, source.config, source.dtype, source.num_experts)

    def attach(model: PreTrainedModel) -> None:
        """Before the plug-in does its part, and anything of the size that the configuration says is allocated."""
        sizes.apply(model)
        _check_size(model, source, room)
        if parts is not None:
            # Before the experts go: checkpoint names are resolved with the whole skeleton.
            parts.postpone(model)
        attachment.attach(model)

    model: PreTrainedModel
    with foreign("The model", path), bounded_parts(path, source.tensors):
        model, info = source.model_class.from_pretrained(
            None,
            config=source.config,
            state_dict=dict(source.dense),
            dtype=source.dtype,
            quantization_config=StreamingConfig(attach),
            experts_implementation="eager",  # for classes that choose more by it than their experts' arithmetic
            generation_config=settings,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused just below with their names
        )
    if attachment.linears is not None:
        attachment.linears.fill()
    if parts is not None:
        parts.settle(model)
    source.finish_loading()
    _check_loaded(model, info, attachment, source)
    model.name_or_path = model.config.name_or_path = str(source.directory)
    model.requires_grad_(False)
    round_as_stock(model)
    install_native_norms(model)
    install_native_layers(model)
    if parts is not None:
        parts.leave_all()
    return model


def _warn_attention(source: ModelSource) -> None:
    wish = unavailable_attention(read_config(source.directory))
    if wish is not None:
        warn_caller(
            f"config.json of {source.name} asks for attention by {ascii(wish)[:60]}, which this machine does not have: "
            "torch's own is used.",
        )


def _check_size(model: PreTrainedModel, source: ModelSource, room: int | None) -> None:
    """Compares the skeleton with the weights and with the budget; a checkpoint's shapes are known to fit by now."""
    path = source.directory / "config.json"
    if source.kind == "store":
        check_dense_shapes(
            model,
            {name: tensor.shape for name, tensor in source.dense.items()},
            path,
            component=source.component,
            encoded=() if source.linears is None else source.linears.weights,
        )
    rest = rest_nbytes(model)
    if room is not None and rest > room:
        raise MemoryBudgetError(
            f"{path} asks for {format_bytes(rest)} beside the weights; the memory budget leaves {format_bytes(room)}.",
            advice="Raise memory, or compare its numbers of positions with the original's.",
            budget=room,
            minimum=rest,
        )


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
    # Releases before 5.8 leave weights in the dtype in which they are stored, where a quantizer is at work.
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if dtypes and source.dtype not in dtypes:
        raise UnsupportedError(
            f"This release of transformers loads weights of {source.name} as {', '.join(sorted(map(str, dtypes)))}; "
            f"the model computes in {source.dtype}.",
            advice="Install a newer transformers.",
            expected=source.dtype,
            got=dtypes,
        )


def _misshapen(name: str, got: Iterable[int], expected: Iterable[int], source: ModelSource) -> LoadError:
    return LoadError(
        f"{name} of {source.name} has the shape {tuple(got)}, the model needs {tuple(expected)}.",
        advice="config.json and the weights do not belong together.",
        tensor=name,
        expected=tuple(expected),
        got=tuple(got),
    )
