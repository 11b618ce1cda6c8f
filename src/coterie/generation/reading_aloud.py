"""A text that a model reads out: what it is asked, and that its answer is this text.

A talker sees the user's turn and the tokens of the answer, not what the thinker thinks of these. So a text that is
given can be spoken without the thinker: its tokens are the answer. Of Qwen3-Omni's talker this is by design (Qwen3-Omni
Technical Report, arXiv:2509.17765, 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.errors import InputError
from coterie.generation.asked import Prompt, ready
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.inputs import check_text

if TYPE_CHECKING:
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
