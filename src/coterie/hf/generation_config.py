"""generation_config.json: read within limits, and every value that ``generate`` reads checked before a model is loaded.

transformers takes whatever stands there and fails over it in the middle of the first request, without a word of where
it came from. Values that mean something in other tools and nothing there are put right: a temperature of 0 is greedy, a
``top_k`` of -1 takes all tokens, 2 is 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import LoadError
from coterie.files.json_text import read_json_object
from coterie.hf.foreign import foreign

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
_LARGEST = 2**31 - 1
_STOP_STRINGS, _STOP_LENGTH = 64, 256
"""What stop strings may be: transformers compares each of their characters with every token."""

Check = Callable[[Any], bool]


def read_generation_config(directory: Path, cls: type[GenerationConfig] | None = None) -> GenerationConfig | None:
    """Reads how a model wants to generate.

    Args:
        directory: A model directory.
        cls: The model's own class for it, if it has one.

    Returns:
        The settings, or None if the directory has no such file.

    Raises:
        LoadError: If the file cannot be read, or a value in it cannot be; facts ``path`` and ``key``.
    """
    from transformers import GenerationConfig

    path = directory / FILE
    try:
        values = read_json_object(path, error=LoadError, advice="Download it again, or remove it.")
    except FileNotFoundError:
        return None
    values = {key: _checked(path, key, value) for key, value in values.items() if value is not None}
    if values.get("temperature") == 0:
        # What all tools but transformers take it for.
        values["do_sample"] = False
        del values["temperature"]
    with foreign("The settings", path, advice="Mend what the message names, or remove the file."):
        made: GenerationConfig = (cls or GenerationConfig).from_dict(values)
        return made


def _checked(path: Path, key: str, value: Any) -> Any:
    """The value as transformers wants it."""
    wanted = _CHECKS.get(key)
    if wanted is None:
        return value
    check, what = wanted
    if not check(value):
        shown = repr(value)
        raise LoadError(
            f"{key} in {path} must be {what}, not {shown if len(shown) <= 80 else shown[:79] + '…'}.",
            advice="Mend it, or remove the key.",
            path=path,
            key=key,
            got=value,
        )
    if key == "top_k" and value < 0:
        return 0
    return float(value) if wanted is not _BOOL and key in _FLOATS and isinstance(value, int) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any, low: int = 0, high: int = _LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_ids(value: Any, low: int = 0) -> bool:
    return isinstance(value, list) and all(_is_int(item, low) for item in value)


def _number(what: str, inside: Callable[[float], bool]) -> tuple[Check, str]:
    return (lambda value: _is_number(value) and inside(value)), what


def _whole(low: int) -> tuple[Check, str]:
    return (lambda value: _is_int(value, low)), f"a whole number from {low} on"


def _is_stops(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return (
        isinstance(stops, list)
        and 0 < len(stops) <= _STOP_STRINGS
        and all(isinstance(stop, str) and 0 < len(stop) <= _STOP_LENGTH for stop in stops)
    )


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(entry, list)
            and len(entry) == 2
            and _is_ids(entry[0])
            and entry[0]
            and isinstance(entry[1], float)
            for entry in value
        )
    )


def _is_bad_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_ids(entry) and entry for entry in value)


def _is_decay(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_int(value[0]) and _is_number(value[1]) and value[1] > 0


def _is_watermark(value: Any) -> bool:
    numbers = {"greenlist_ratio", "bias", "hashing_key", "context_width"}
    return isinstance(value, dict) and all(
        _is_number(item) if key in numbers else key == "seeding_scheme" and isinstance(item, str)
        for key, item in value.items()
    )


_BOOL: tuple[Check, str] = (lambda value: isinstance(value, bool)), "true or false"
_SHARE = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_POSITIVE = _number("a number above 0", lambda value: value > 0)
_ANY = _number("a number", lambda value: True)
_AT_LEAST_0 = _number("a number from 0 on", lambda value: value >= 0)
_COUNT, _FROM_1 = _whole(0), _whole(1)
# Some released files have −1 for a token that there is not.
_ID: tuple[Check, str] = (lambda value: _is_int(value, -1)), "the id of a token"
_IDS: tuple[Check, str] = (
    (lambda value: _is_int(value, -1) or (_is_ids(value, -1) and bool(value))),
    "one or several ids of tokens",
)
_REAL_ID: tuple[Check, str] = _is_int, "the id of a token"
_REAL_IDS: tuple[Check, str] = (
    (lambda value: _is_int(value) or (_is_ids(value) and bool(value))),
    "one or several ids of tokens",
)
_LIST: tuple[Check, str] = _is_ids, "a list of ids of tokens"
_OBJECT: tuple[Check, str] = (lambda value: isinstance(value, dict)), "an object"
_TEXT: tuple[Check, str] = (lambda value: isinstance(value, str)), "a text"

_CHECKS: dict[str, tuple[Check, str]] = {
    "max_length": _FROM_1, "max_new_tokens": _FROM_1, "min_length": _COUNT, "min_new_tokens": _COUNT,
    "early_stopping": ((lambda value: isinstance(value, bool) or value == "never"), "true, false or 'never'"),
    "max_time": _POSITIVE,
    "stop_strings": (_is_stops, f"1 to {_STOP_STRINGS} texts of 1 to {_STOP_LENGTH} characters"),
    "do_sample": _BOOL, "num_beams": _FROM_1, "use_mtp": _BOOL, "use_cache": _BOOL,
    "cache_implementation": _TEXT, "cache_config": _OBJECT, "max_cache_len": _FROM_1,
    "temperature": _AT_LEAST_0,
    "top_k": ((lambda value: _is_int(value, -1)), "a whole number from 0 on (0 or -1: all tokens)"),
    "top_p": _AT_LEAST_0, "min_p": _SHARE,
    "top_h": _number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    "typical_p": _POSITIVE, "epsilon_cutoff": _ANY, "eta_cutoff": _ANY, "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE, "length_penalty": _ANY, "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT, "bad_words_ids": (_is_bad_words, "a list of lists of ids of tokens"),
    "renormalize_logits": _BOOL, "forced_bos_token_id": _REAL_ID, "forced_eos_token_id": _REAL_IDS,
    "remove_invalid_values": _BOOL,
    "exponential_decay_length_penalty": (_is_decay, "a whole number and a factor above 0, as a list"),
    "suppress_tokens": _LIST, "begin_suppress_tokens": _LIST,
    "sequence_bias": (_is_bias, "a list of pairs, each a list of ids of tokens and a number such as 1.5"),
    "token_healing": _BOOL, "guidance_scale": _ANY, "watermarking_config": (_is_watermark, "settings of a watermark"),
    "num_return_sequences": _FROM_1, "output_attentions": _BOOL, "output_hidden_states": _BOOL, "output_scores": _BOOL,
    "output_logits": _BOOL, "return_dict_in_generate": _BOOL, "pad_token_id": _ID, "bos_token_id": _ID,
    "eos_token_id": _IDS, "decoder_start_token_id": _IDS, "is_assistant": _BOOL, "num_assistant_tokens": _FROM_1,
    "num_assistant_tokens_schedule": _TEXT, "assistant_confidence_threshold": _ANY, "prompt_lookup_num_tokens": _FROM_1,
    "max_matching_ngram_size": _FROM_1, "assistant_early_exit": _FROM_1, "assistant_lookbehind": _FROM_1,
    "target_lookbehind": _FROM_1, "speculation_type": _TEXT, "compile_config": _OBJECT, "disable_compile": _BOOL,
    "low_memory": _BOOL, "penalty_alpha": _AT_LEAST_0, "diversity_penalty": _ANY, "num_beam_groups": _FROM_1,
    "prefill_chunk_size": _FROM_1,
}  # fmt: skip
"""What each key may be. Keys that are not here are kept as they are: ``generate`` does not read them."""

_FLOATS = frozenset({
    "temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "length_penalty", "penalty_alpha", "diversity_penalty", "max_time",
})  # fmt: skip
