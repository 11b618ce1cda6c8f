"""Configurations and model classes: which transformers class a checkpoint wants, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie.errors import CheckpointFileError, UnsupportedError, UsageError
from coterie.files.json_text import read_json_object
from coterie.hf.config_values import check_agreement, check_values, computing_dtype
from coterie.hf.foreign import foreign, reason_of
from coterie.hf.implementations import settle_implementations
from coterie.hf.quantisation import Quantisation, read_quantisation, remove_quantisation
from coterie.hf.releases import installed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MEND = "Correct the value that the message names, or download the file again."

COMPONENTS = ("thinker", "talker")
"""Parts of a whole model that can be opened on their own, as attribute names of the whole model's class."""


def load_config(directory: Path) -> PreTrainedConfig:
    """Reads ``config.json`` with transformers' own class; code from the repository is never run.

    What it says about quantisation is left out: the model that is built from it computes with decoded weights. So is an
    implementation of attention that this machine has not.

    Raises:
        CheckpointFileError: If there is no valid ``config.json``, or transformers does not accept a value.
        UnsupportedError: If transformers has no class of its own for it, or the quantisation is not supported.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = directory / "config.json"
    raw = read_config(directory)
    model_type = raw.get("model_type")
    if "auto_map" in raw and model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"{path} asks for code from its repository (model type {model_type!r}), which is never run.",
            advice="Use a checkpoint of an architecture that transformers has itself.",
            path=path,
            model_type=model_type,
        )
    if model_type is not None and model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"{path} is of a model that this release of transformers does not know: model_type {model_type!a}.",
            advice="Install a newer transformers, if it has this model by now.",
            path=path,
            model_type=model_type,
        )
    config: PreTrainedConfig
    with foreign("The configuration", path, error=CheckpointFileError, advice=_MEND):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    check_agreement(config, path)
    remove_quantisation(config)
    settle_implementations(config, path)
    _keep_dtypes_of_parts(config, raw)
    return config


def _keep_dtypes_of_parts(config: PreTrainedConfig, raw: dict[str, Any]) -> None:
    """Early releases of transformers forget the dtype that a part states; a part opened by itself computes in it."""
    for name in COMPONENTS:
        part, stated = getattr(config, f"{name}_config", None), raw.get(f"{name}_config")
        if part is None or not isinstance(stated, dict) or getattr(part, "dtype", None) is not None:
            continue
        dtype = computing_dtype(str(stated.get("dtype") or stated.get("torch_dtype")))
        if dtype is not None:
            part.dtype = dtype


def load_quantisation(directory: Path) -> Quantisation | None:
    """What ``config.json`` says about quantisation; :func:`load_config` has read it and takes it out.

    Raises:
        CheckpointFileError: If there is no valid ``config.json``.
        UnsupportedError: If the quantisation is not supported.
    """
    return _read(directory)[1]


def read_config(directory: Path) -> dict[str, Any]:
    """The content of ``config.json``, checked for what transformers would take without looking.

    Raises:
        CheckpointFileError: If there is none, it is not JSON, or a value is absurd.
        UnsupportedError: If the quantisation is not supported.
    """
    return _read(directory)[0]


def _read(directory: Path) -> tuple[dict[str, Any], Quantisation | None]:
    path = directory / "config.json"
    try:
        raw = read_json_object(path)
    except FileNotFoundError:
        raise CheckpointFileError(
            f"{directory} has no config.json.", advice="Pass the directory of a Hugging Face checkpoint.", path=path
        ) from None
    quantisation = read_quantisation(raw, path)
    check_values(raw, path)
    return raw, quantisation


def resolve_model(config: PreTrainedConfig, component: str | None) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Finds the class that ``architectures`` names, or the class of one component of it.

    Args:
        config: The checkpoint's whole configuration.
        component: ``thinker``, ``talker``, or None for the model as it is.

    Returns:
        The class, and the part of the configuration that belongs to it.

    Raises:
        UnsupportedError: If the class is not one of transformers, or cannot be imported.
        UsageError: If the model has no such component.
    """
    import transformers

    architectures = getattr(config, "architectures", None) or []
    if not architectures:
        raise UnsupportedError(
            "config.json does not name its architecture.", advice='Add "architectures": ["…ForCausalLM"] to it.'
        )
    whole = _model_class(architectures[0]) or _class_of_type(config, architectures[0])
    if whole is None:
        if (reason := _import_failure(architectures[0])) is not None:
            raise UnsupportedError(
                f"transformers {transformers.__version__} cannot import its class {architectures[0]!r}: {reason}",
                advice="A package that it imports is missing, or does not fit the others. torchvision, for example, "
                "must be the release for your torch, made for the same CUDA or CPU.",
                architecture=architectures[0],
            )
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no class {architectures[0]!r}.",
            advice="Install the release of transformers that introduced it.",
            architecture=architectures[0],
        )
    if component is None or component == component_of_class(whole, config):
        return whole, config
    part = getattr(config, f"{component}_config", None)
    classes = {name: _model_class(_component_class(architectures[0], name)) for name in COMPONENTS}
    valid = [name for name, cls in classes.items() if cls is not None and hasattr(config, f"{name}_config")]
    found = classes.get(component)
    if part is None or found is None:
        own = component_of_class(whole, config)
        raise UsageError.unknown("component", component, valid or [own])
    return found, part


def parts_of(
    model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> list[tuple[type[PreTrainedModel] | None, Any]]:
    """Each component of a whole model with its class, None where that is not known; else the model itself."""
    parts = {name: part for name in COMPONENTS if (part := getattr(config, f"{name}_config", None)) is not None}
    if not parts:
        return [(model_class, config)]
    return [(_model_class(_component_class(model_class.__name__, name)), part) for name, part in parts.items()]


def _model_class(name: str) -> type[PreTrainedModel] | None:
    """The model class that transformers has under a name."""
    import transformers

    try:
        found = getattr(transformers, name, None)
    except Exception:  # a package that its module imports is not installed
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _import_failure(name: str) -> str | None:
    """Why transformers cannot import a class that it lists, or None if it lists no such class."""
    import transformers

    try:
        getattr(transformers, name, None)
    except Exception as error:  # transformers says that the import failed; its cause says why
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return reason_of(cause)
    return None


def _class_of_type(config: PreTrainedConfig, architecture: str) -> type[PreTrainedModel] | None:
    """The class that transformers has for a type of model under another name than its makers gave it.

    Only of another family: where a family has classes of its own, one that is not among them computes otherwise.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) if architecture.endswith("ForCausalLM") else None
    if not isinstance(found, type) or _family(found) == _family(type(config)):
        return None
    return found


def _family(cls: type) -> str:
    """The package of transformers that a class is defined in, such as ``qwen3_moe``."""
    return cls.__module__.rpartition(".")[0]


def _component_class(architecture: str, component: str) -> str:
    stem, _, rest = architecture.partition("For")
    return f"{stem}{component.capitalize()}For{rest}"


def component_of_class(cls: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    """The component that a class is when it is opened on its own: ``thinker``, ``talker`` or ``text``."""
    for name in COMPONENTS:
        # The talker's configuration has no model type; its class is all that tells.
        if (config.model_type or "").endswith(f"_{name}") or f"{name.capitalize()}For" in cls.__name__:
            return name
    return "text"


def config_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype that the configuration states, or None."""
    dtype = getattr(config, "dtype", None)
    return computing_dtype(str(dtype).removeprefix("torch."))


def has_talker(config: PreTrainedConfig) -> bool:
    """Whether a whole configuration describes a model that speaks: a thinker, and a talker."""
    return all(getattr(config, f"{name}_config", None) is not None for name in COMPONENTS)


def fill_known_gaps(config: PreTrainedConfig) -> None:
    """Fills what released configurations lack and transformers' code reads.

    Qwen3-Omni's talker computes positions of audio with ``audio_config``, which only the thinker's configuration
    has; without it speech in answer to picture and sound raises AttributeError.
    """
    thinker, talker = getattr(config, "thinker_config", None), getattr(config, "talker_config", None)
    if thinker is not None and talker is not None and not hasattr(talker, "audio_config"):
        talker.audio_config = thinker.audio_config


def check_architecture(model: PreTrainedModel, banks: int) -> None:
    """Refuses a model without experts that can be hooked.

    Raises:
        UnsupportedError: If there is none.
    """
    if banks:
        return
    suspects = sorted({type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")})
    detail = f" Its experts class {suspects[0]} cannot be hooked." if suspects else " It has no experts."
    raise UnsupportedError(
        f"{type(model).__name__} of transformers {installed()} cannot be streamed.{detail}",
        advice="Use transformers itself for it, or a newer release of it.",
        architecture=type(model).__name__,
    )
