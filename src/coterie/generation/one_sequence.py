"""One sequence at a time: which of a model's generation settings that can do, and what is said of the others.

A model's generation_config.json may ask for what needs several sequences, code from the Hub or another device. Such
settings are refused by name before anything is computed; what transformers raises over one nobody knows about names the
file, too, as does what a model's class raises over its configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coterie.errors import CoterieError, LoadError, UnsupportedError
from coterie.hf.context import model_context
from coterie.hf.foreign import reason_of
from coterie.hf.generation_config import FILE
from coterie.hf.releases import installed

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_CACHES = ("quantized", "offloaded", "offloaded_static", "offloaded_hybrid", "offloaded_hybrid_chunked")
_GENERATING = ("transformers.generation", "transformers.cache_utils", "coterie.hf.generation_steps")
"""Where settings are used, in transformers' own loop and in ours."""
_NO_MEMORY = "can't allocate memory"
"""What torch says where there is none."""
_DEFAULT_TOP_K = 50
"""What transformers takes where nothing is said."""


def beams(config: GenerationConfig) -> int:
    """Sequences that a beam search keeps at once; 1 for no beam search."""
    return config.num_beams or 1


def sequences_at_once(config: GenerationConfig) -> int:
    """Sequences whose tokens are in memory at once: beams, and twice as many where a second prompt guides the first."""
    guided = config.guidance_scale is not None and config.guidance_scale != 1
    return beams(config) * (2 if guided else 1)


def longest(model: PreTrainedModel, config: GenerationConfig) -> int | None:
    """Tokens that a sequence may have, prompt included: what memory there is for, else what the model was made for.

    Args:
        model: The model.
        config: What is to be done, the caller's wishes included: several sequences share the memory.

    Returns:
        None if nothing limits it.
    """
    most = model.coterie.max_context
    return model_context(model.config) if most is None else most // sequences_at_once(config)


def check_settings(model: PreTrainedModel, config: GenerationConfig, *, streamed: bool = False) -> None:
    """Refuses settings that one sequence cannot do.

    Args:
        model: The model, which says where the settings come from.
        config: What is to be done, the caller's wishes included.
        streamed: Whether the text has to come while it is generated, as speech does.

    Raises:
        UnsupportedError: If there is such a setting. Facts ``key`` and ``path``.
    """
    for key, why in _refusals(config, streamed=streamed):
        file = settings_file(model)
        raise UnsupportedError(
            f"{key} = {getattr(config, key)!r} in {file} {why}.",
            advice="Remove the key from the file (of a store: from the checkpoint's, then run "
            "`coterie stores refresh`), or call model.generate from Python.",
            key=key,
            path=file,
        )


def _refusals(config: GenerationConfig, *, streamed: bool) -> Iterator[tuple[str, str]]:
    if (config.num_return_sequences or 1) > 1:
        yield "num_return_sequences", "asks for several answers to one prompt"
    if beams(config) > 1 and streamed:
        yield "num_beams", "asks for a beam search, whose text is known at its end only"
    if config.token_healing and streamed:
        # It drops special tokens: a talker's prompt would no longer be as long as what the thinker has read.
        yield "token_healing", "asks for another prompt than the one given, which no speech or measurement follows"
    if beams(config) > 1 and (_value(config, "num_beam_groups") or 1) > 1:
        yield "num_beam_groups", "asks for groups of beams, which transformers does with code from the Hub only"
    for key in ("dola_layers", "constraints", "force_words_ids"):
        if _value(config, key) is not None:
            yield key, "asks for a way of generating that transformers does with code from the Hub only"
    top_k = _DEFAULT_TOP_K if config.top_k is None else config.top_k
    if _value(config, "penalty_alpha") and top_k > 1 and not config.do_sample and beams(config) == 1:
        yield "penalty_alpha", "asks for contrastive search, which transformers does with code from the Hub only"
    if config.cache_implementation in _CACHES:
        yield "cache_implementation", "asks for a cache that needs a GPU or another package"
    if _value(config, "use_mtp"):
        yield "use_mtp", "asks for layers that predict further tokens, which Coterie does not run"
    if config.is_assistant:
        yield "is_assistant", "says that this model drafts for another one"


def _value(config: GenerationConfig, key: str) -> Any:
    """A setting that not every release of transformers has."""
    return getattr(config, key, None)


def settings_file(model: PreTrainedModel) -> Path:
    """The file that a model's generation settings come from."""
    # Not only ours: a measurement may compare with stock.
    source = getattr(getattr(model, "coterie", None), "source", None)
    return Path(model.config.name_or_path if source is None else source.directory) / FILE


@contextmanager
def files_named(model: PreTrainedModel) -> Iterator[None]:
    """Inside, what transformers and torch raise over a model's files names the one it comes from.

    Over its settings that is where generation itself fails, outside the model; over its configuration, where its
    forward pass does.

    Raises:
        LoadError: Instead of what they raise. Fact ``path``.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, AssertionError, OverflowError,
            ZeroDivisionError, NotImplementedError, RuntimeError) as error:  # fmt: skip
        if isinstance(error, CoterieError):
            raise
        settings, raised = settings_file(model), _raised_in(error)
        if _NO_MEMORY in str(error):
            raise
        if raised == "settings" and settings.is_file():
            raise LoadError(
                f"transformers does not generate with the settings in {settings}: {reason_of(error)}",
                advice="Mend what the message names, or remove the file.",
                path=settings,
            ) from error
        if raised == "model":
            path = settings.with_name("config.json")
            raise LoadError(
                f"{type(model).__name__} of transformers {installed()} fails with {path}: {reason_of(error)}",
                advice="Compare the file with the original's. If they are the same, please report this.",
                path=path,
            ) from error
        raise


def _raised_in(error: BaseException) -> Literal["settings", "model", "elsewhere"]:
    """Whose doing an error is: that of transformers' generation, of a model's class, or of whoever calls them.

    It is whoever called torch. What we raise ourselves, or beneath a forward of ours, is neither of the first two.
    """
    trace, owner, beneath = error.__traceback__, "", False
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if name == "transformers.generation.logits_process":
            return "settings"  # some of these run the model once more
        beneath |= name.startswith("torch.nn.modules")
        if name.partition(".")[0] != "torch" and name != "coterie.generation.draws":
            owner = name  # torch, and what hands it a generator, fail over what they are given
        trace = trace.tb_next
    if beneath or owner.startswith("transformers.models"):
        return "model" if owner.startswith("transformers.") else "elsewhere"
    return "settings" if owner.startswith(_GENERATING) else "elsewhere"
