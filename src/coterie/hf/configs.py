"""Configurations and model classes: which transformers class a checkpoint wants, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import CheckpointFileError, UnsupportedError, UsageError
from coterie.hf.quantisation import Quantisation, read_quantisation, remove_quantisation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

COMPONENTS = ("thinker", "talker")
"""Parts of a whole model that can be opened on their own, as attribute names of the whole model's class."""


def load_config(directory: Path) -> PreTrainedConfig:
    """Reads ``config.json`` with transformers' own class; code from the repository is never run.

    What it says about quantisation is left out: the model that is built from it computes with decoded weights.

    Raises:
        CheckpointFileError: If there is no valid ``config.json``.
        UnsupportedError: If transformers has no class of its own for it, or the quantisation is not supported.
    """
    from transformers import AutoConfig

    path = directory / "config.json"
    raw = _read_json(directory)
    read_quantisation(raw, path)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        model_type = raw.get("model_type")
        if "auto_map" in raw:
            raise UnsupportedError(
                f"{path} asks for code from its repository (model type {model_type!r}), which is never run.",
                advice="Use a checkpoint of an architecture that transformers has itself.",
                path=path,
                model_type=model_type,
            ) from error
        raise UnsupportedError(f"transformers cannot read {path}: {error}", path=path, model_type=model_type) from error
    remove_quantisation(config)
    return config


def load_quantisation(directory: Path) -> Quantisation | None:
    """What ``config.json`` says about quantisation; :func:`load_config` has read it and takes it out.

    Raises:
        CheckpointFileError: If there is no valid ``config.json``.
        UnsupportedError: If the quantisation is not supported.
    """
    return read_quantisation(_read_json(directory), directory / "config.json")


def _read_json(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointFileError(
            f"{directory} has no config.json.", advice="Pass the directory of a Hugging Face checkpoint.", path=path
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointFileError(
            f"{path} is not valid JSON ({error}).", advice="Download it again.", path=path
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointFileError(f"{path} is not a JSON object.", advice="Download it again.", path=path)
    return raw


def resolve_model(config: PreTrainedConfig, component: str | None) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Finds the class that ``architectures`` names, or the class of one component of it.

    Args:
        config: The checkpoint's whole configuration.
        component: ``thinker``, ``talker``, or None for the model as it is.

    Returns:
        The class, and the part of the configuration that belongs to it.

    Raises:
        UnsupportedError: If the class is not one of transformers.
        UsageError: If the model has no such component.
    """
    import transformers

    architectures = getattr(config, "architectures", None) or []
    if not architectures:
        raise UnsupportedError(
            "config.json does not name its architecture.", advice='Add "architectures": ["…ForCausalLM"] to it.'
        )
    whole = getattr(transformers, architectures[0], None)
    if whole is None:
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no class {architectures[0]!r}.",
            advice="Install the release of transformers that introduced it.",
            architecture=architectures[0],
        )
    if component is None or component == component_of_class(whole, config):
        return whole, config
    part = getattr(config, f"{component}_config", None)
    classes = {name: getattr(transformers, _component_class(architectures[0], name), None) for name in COMPONENTS}
    valid = [name for name, cls in classes.items() if cls is not None and hasattr(config, f"{name}_config")]
    found = classes.get(component)
    if part is None or found is None:
        own = component_of_class(whole, config)
        raise UsageError.unknown("component", component, valid or [own])
    return found, part


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


def config_dtype(config: PreTrainedConfig) -> str | None:
    """The dtype that the configuration states, as torch spells it, or None."""
    dtype = getattr(config, "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


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
        f"{type(model).__name__} cannot be streamed.{detail}",
        advice="Use transformers itself for it.",
        architecture=type(model).__name__,
    )
