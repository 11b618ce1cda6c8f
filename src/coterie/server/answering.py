"""One request through the model: its inputs, its answer piece by piece, its parts and calls told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from coterie.generation.completion import complete
from coterie.server.tickets import Part, Piece, Prepared, Ticket

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.logprobs import TokenLogprob
    from coterie.generation.opened import OpenModel


def answer(opened: OpenModel, ticket: Ticket, *, should_stop: Callable[[], bool]) -> Completion:
    """Answers a request whose prompt is prepared, and tells its ticket what comes.

    Args:
        opened: The model, which nobody else runs meanwhile.
        ticket: The request.
        should_stop: Asked before every layer.

    Raises:
        Refusal: If a picture or sound cannot be used.
        CoterieError: As generation does.
    """
    prompt = ticket.prompt
    assert prompt is not None
    inputs = prompt.inputs()
    ticket.tell(Prepared(int(inputs["input_ids"].shape[1])))
    heard: list[TokenLogprob] = []
    of_prompt: list[TokenLogprob] = []
    if prompt.reader is not None:
        prompt.reader.on_reasoning = _teller(ticket, "reasoning", heard, of_prompt)
    on_text = _teller(ticket, "text", heard, of_prompt)
    if prompt.calls is not None:
        prompt.calls.on_text, on_text = on_text, prompt.calls.feed
    completion = complete(
        opened.model,
        opened.processors.tokenizer,
        inputs,
        prompt.sampling or ticket.wish.sampling,
        on_text=on_text,
        should_stop=should_stop,
        reader=prompt.reader,
        on_logprobs=heard.extend,
        on_prompt_logprobs=of_prompt.extend,
    )
    if prompt.calls is None:
        return completion
    prompt.calls.end()
    return replace(completion, text=prompt.calls.text, tool_calls=(*completion.tool_calls, *prompt.calls.calls))


def _teller(
    ticket: Ticket, part: Part, heard: list[TokenLogprob], of_prompt: list[TokenLogprob]
) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if ticket.phase == "prefill":
            ticket.phase = "decode"
        ticket.tell(Piece(part, text, tuple(heard), tuple(of_prompt)))
        heard.clear()
        of_prompt.clear()

    return tell
