"""A text that a model reads out: what it is asked, and that its answer is this text.

A talker sees the user's turn and the tokens of the answer, not what the thinker thinks of these. So a text that is
given can be spoken without the thinker: its tokens are the answer. Of Qwen3-Omni's talker this is by design (Qwen3-Omni
Technical Report, arXiv:2509.17765, 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coterie.errors import InputError
from coterie.generation.asked import Prompt, ready
from coterie.generation.chat import can_chat, chat_inputs, user_message
from coterie.generation.inputs import check_text
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking, no_template
from coterie.generation.speech import Voice, speaker_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.processors import Processors

REQUEST = "Read this aloud: {text}"
"""What the user says, which the talker reads, too."""


def reading_aloud(processors: Processors, text: str) -> Prompt:
    """The request to read a text out, with the text as its answer.

    Args:
        processors: Of the model, which has a chat template.
        text: The text.

    Raises:
        InputError: If there is nothing to say, or it has tokens that say nothing, such as marks of a turn.
    """
    text = check_text(text, "The text").strip()
    tokenizer = processors.tokenizer
    said = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
    if not said:
        raise InputError("There is nothing to say.", field="input")
    if special := sorted({*said} & {*tokenizer.all_special_ids}):
        raise InputError(
            f"{tokenizer.convert_ids_to_tokens(special[0])} in the text is a mark that cannot be spoken.",
            advice="Leave it out.", field="input",
        )  # fmt: skip
    return ready(chat_inputs(processors, [user_message(REQUEST.format(text=text))]), said=said)


def read_aloud(
    model: PreTrainedModel | OpenModel,
    text: str,
    *,
    voice: Voice | None = None,
    seed: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Speaking:
    """Has a model read a text out.

    The model is asked to, and the text is taken for its answer, whatever it would say. How well it reads depends on
    what its talker has learned. Example::

        speech = coterie.read_aloud(model, "Good morning.").result()

    Args:
        model: A whole omni model from :func:`coterie.load`.
        text: The text.
        voice: How it is spoken.
        seed: Makes what is drawn repeatable.
        should_stop: As in :func:`coterie.speak`.

    Returns:
        An iterator over the text and the chunks of its sound, as of :func:`coterie.speak`.

    Raises:
        UnsupportedError: If the model has no talker.
        UsageError: If it has no such voice.
        InputError: If there is no chat template, or nothing to say.
        CoterieError: As computing the sound raises it.
    """
    opened = model if isinstance(model, OpenModel) else OpenModel.of(model)
    speaker_of(opened.model, voice or Voice())
    if not can_chat(opened.processors):
        raise no_template(opened.model)
    prompt = reading_aloud(opened.processors, text)
    return Speaking(
        opened.model,
        opened.processors.tokenizer,
        prompt.inputs(),
        Sampling(max_new_tokens=None, seed=seed),
        voice=voice,
        should_stop=should_stop,
        said=prompt.said,
    )
