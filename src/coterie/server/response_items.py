"""From the items of ``/v1/responses`` to a conversation as the model's template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coterie.generation.answers import ToolCall
from coterie.server.media import Media
from coterie.server.prompts import Messages
from coterie.server.refusals import Refusal
from coterie.server.schemas.responses import (
    CallItem,
    InputImage,
    InputSound,
    InputVideo,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    ResultItem,
)


def from_items(items: str | Sequence[Item], instructions: str | None) -> tuple[Messages, Media]:
    """A conversation, and what it shows and plays.

    Args:
        items: The conversation, or one thing that the user says.
        instructions: What the model is told to be.

    Raises:
        Refusal: If a picture, sound or video is none that is taken, or a result belongs to no call.
    """
    made: Messages = []
    if instructions is not None:
        made.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*made, {"role": "user", "content": items}], Media()
    reader = _Items(made)
    for number, item in enumerate(items):
        reader.read(item, f"input.{number}")
    return made, reader.media


class _Items:
    """Reads items into turns: one turn of the model is several items."""

    def __init__(self, made: Messages) -> None:
        self.media = Media()
        self._made = made
        self._names: dict[str, str] = {}

    def read(self, item: Item, param: str) -> None:
        match item:
            case MessageItem():
                self._said(item, param)
            case CallItem():
                self._names[item.call_id] = item.name
                call = ToolCall(name=item.name, arguments=item.arguments).as_message()
                self._answer().setdefault("tool_calls", []).append({"id": item.call_id, **call})
            case ReasoningItem():
                thought = "".join(part.text for part in item.content or ())
                self._answer("content", "tool_calls").update(reasoning_content=thought, thinking=thought)
            case ResultItem():
                self._came(item, param)

    def _said(self, item: MessageItem, param: str) -> None:
        content: str | list[dict[str, Any]]
        if isinstance(item.content, str):
            content = item.content
        else:
            content = [self._part(part, f"{param}.content.{n}", item.role) for n, part in enumerate(item.content)]
        if item.role == "assistant":
            self._answer("content", "tool_calls")["content"] = content
        else:
            role = "user" if item.role == "user" else "system"
            self._made.append({"role": role, "content": content})

    def _part(self, part: Part, param: str, role: str) -> dict[str, Any]:
        if isinstance(part, InputImage | InputSound | InputVideo):
            if role != "user":
                raise Refusal(400, f"{param}: pictures, sounds and videos are the user's.", param=param)
            if isinstance(part, InputImage):
                return {"type": "image", "path": self.media.add_picture_url(f"{param}.image_url", part.image_url)}
            if isinstance(part, InputVideo):
                return {"type": "video", "path": self.media.add_video_url(f"{param}.video_url", part.video_url)}
            sound = part.input_audio
            name = self.media.add_sound(f"{param}.input_audio.data", sound.data, sound.format)
            return {"type": "audio", "path": name}
        return {"type": "text", "text": part.text}

    def _came(self, item: ResultItem, param: str) -> None:
        if item.call_id not in self._names:
            raise Refusal(400, f"{param}.call_id: there is no call with this id before.", param=f"{param}.call_id")
        text = item.output if isinstance(item.output, str) else "\n".join(part.text for part in item.output)
        name = self._names[item.call_id]
        self._made.append({"role": "tool", "content": text, "tool_call_id": item.call_id, "name": name})

    def _answer(self, *without: str) -> dict[str, Any]:
        """The model's turn that is going on; a new one if it has one of these already."""
        last = self._made[-1] if self._made else None
        if last is None or last["role"] != "assistant" or any(last.get(name) for name in without):
            last = {"role": "assistant", "content": ""}
            self._made.append(last)
        return last
