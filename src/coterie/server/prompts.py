"""From the messages and texts of requests to what the model continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coterie.errors import ContextLengthError
from coterie.generation.answer_form import answer_form, last_call_ends
from coterie.generation.answers import ToolCall
from coterie.generation.asked import Prompt, ready
from coterie.generation.chat import ChatPrompt, can_chat, chat_prompt, chat_template, template_settings
from coterie.generation.chat_options import ChatOptions
from coterie.generation.grammar import Grammar
from coterie.generation.inputs import build_inputs, token_inputs
from coterie.generation.one_sequence import longest
from coterie.generation.opened import OpenModel
from coterie.generation.parsed_answers import reading
from coterie.generation.reading_aloud import reading_aloud
from coterie.generation.toolbox import Toolbox
from coterie.server.media import Media
from coterie.server.refusals import Refusal
from coterie.server.schemas.chat import (
    AssistantMessage,
    AudioPart,
    ImagePart,
    Message,
    TextPart,
    ToolMessage,
    VideoPart,
)
from coterie.server.schemas.messages import (
    ImageBlock,
    TextBlock,
    Texts,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    VideoBlock,
)
from coterie.server.schemas.speech import SpokenAudio

Messages = list[dict[str, Any]]
"""A conversation as :func:`coterie.generation.chat.chat_prompt` takes it."""


class Prompts:
    """Makes prompts for one model.

    Args:
        opened: The model.

    Attributes:
        can_chat: Whether the model was trained to chat.
        context: Tokens that a sequence may have; None if nothing says so.
    """

    def __init__(self, opened: OpenModel) -> None:
        self._processors = opened.processors
        self.can_chat = can_chat(opened.processors)
        template = chat_template(opened.processors)
        self._settings = template_settings(opened.processors, template)
        self.context = longest(opened.model, opened.model.generation_config)

    def options(self, variables: Mapping[str, Any]) -> ChatOptions:
        """What the template is told, if it asks for it: a client may say nothing that has no effect.

        Args:
            variables: Values, by the field of the request that says them.

        Raises:
            Refusal: Naming the first that the template knows nothing of, or that is not the client's to say.
        """
        told: dict[str, Any] = {}
        for param, value in variables.items():
            name = param.rpartition(".")[2]
            if name not in self._settings:
                raise Refusal(400, f"{param}: this model's chat template has no such setting.", param=param,
                              code="unsupported")  # fmt: skip
            told[name] = value
        return ChatOptions(variables=told)

    def without_thinking(self) -> ChatOptions:
        """Tells the template that the model is not to reason, if it asks for that."""
        return ChatOptions(variables={"enable_thinking": False} if "enable_thinking" in self._settings else {})

    def of_messages(
        self,
        messages: Messages,
        media: Media,
        tools: Toolbox | None = None,
        options: ChatOptions | None = None,
        *,
        wanted: Grammar | None = None,
    ) -> Prompt:
        """The next turn of a conversation, ready for the model but for its pictures and sounds.

        Args:
            messages: The turns so far.
            media: What they show and play.
            tools: What the model may call.
            options: What the template is told.
            wanted: The form of the answer.

        Raises:
            CoterieError: If the template refuses the conversation, it is too long, or the model does not have what is
                asked for.
        """
        tools, tokenizer = tools or Toolbox(), self._processors.tokenizer
        made = self.rendered(messages, tools.tools, options)
        reader, calls = reading(tokenizer, made.template, made.text, tools, formed=wanted is not None)
        form = answer_form(tokenizer, made.template, reader, tools, wanted)
        ends = last_call_ends(made.template, tokenizer, tools)
        if not media:
            return self._ready(made.inputs(self._processors), reader=reader, calls=calls, form=form, ends=ends)

        def inputs() -> Any:
            with media.files() as files:
                # In the order in which the prompt mentions them, which is that of the messages.
                return self._checked(replace(made, media=files).inputs(self._processors))

        return Prompt(inputs=inputs, tokens=None, reader=reader, calls=calls, form=form, ends=ends)

    def rendered(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] = (), options: ChatOptions | None = None
    ) -> ChatPrompt:
        """A conversation as the text that the model continues."""
        return chat_prompt(self._processors, messages, options, tools=tools)

    def of_speech(self, text: str) -> Prompt:
        """A text to read out, whatever the model would say."""
        made = reading_aloud(self._processors, text)
        self._checked(made.inputs())
        return made

    def of_text(self, text: str | Sequence[int]) -> Prompt:
        """A text, or tokens, to continue as they are."""
        if isinstance(text, str):
            return self._ready(build_inputs(self._processors, text))
        return self._ready(token_inputs(self._processors, text))

    def _ready(self, inputs: Any, **more: Any) -> Prompt:
        return ready(self._checked(inputs), **more)

    def _checked(self, inputs: Any) -> Any:
        """What is too long is told before it waits for the model."""
        length = _length(inputs)
        if self.context is not None and length > self.context:
            raise ContextLengthError(
                # Clients know it by "prompt is too long", where they do not read codes.
                f"The prompt is too long: it has {length} tokens, and there is room for {self.context}.",
                tokens=length,
                max_context=self.context,
            )
        return inputs


def _length(inputs: Mapping[str, Any]) -> int:
    return int(inputs["input_ids"].shape[1])


def from_openai(messages: Sequence[Message], said: Callable[[str], str | None]) -> tuple[Messages, Media]:
    """Messages in OpenAI's shape as the model's template takes them, and what they show and play.

    Args:
        messages: The messages.
        said: Gives what was said in an answer before, by the id of its sound; None if that is not known.

    Raises:
        Refusal: If a picture, sound or video is none that is taken, or it is not known what was said.
    """
    made: Messages = []
    media = Media()
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        content: str | list[dict[str, Any]]
        if isinstance(message, AssistantMessage) and message.content is None and message.audio is not None:
            content = _spoken(message.audio, f"messages.{number}.audio.id", said)
        elif message.content is None or isinstance(message.content, str):
            content = message.content or ""
        else:
            content = [
                _openai_part(part, f"messages.{number}.content.{place}", media)
                for place, part in enumerate(message.content)
            ]
        turn: dict[str, Any] = {"role": role, "content": content}
        if isinstance(message, AssistantMessage):
            turn |= _answered(message, f"messages.{number}", names)
        elif isinstance(message, ToolMessage):
            turn |= {"tool_call_id": message.tool_call_id}
            if message.tool_call_id not in names:
                param = f"messages.{number}.tool_call_id"
                raise Refusal(400, f"{param}: there is no call with this id before.", param=param)
            turn["name"] = names[message.tool_call_id]
        made.append(turn)
    return made, media


def _spoken(audio: SpokenAudio, param: str, said: Callable[[str], str | None]) -> str:
    """What was said in an answer before."""
    text = said(audio.id) if audio.transcript is None else audio.transcript
    if text is None:
        raise Refusal(
            400,
            f"{param}: it is not known here what was said in {audio.id!r}, which is kept for an hour at most. Send the "
            f"transcript as the content of the message.",
            param=param,
            code="audio_not_found",
        )
    return text


def _answered(message: AssistantMessage, param: str, names: dict[str, str]) -> dict[str, Any]:
    """What an answer had besides its text; notes the names of the tools that it called."""
    if message.content is None and not message.tool_calls and message.audio is None:
        raise Refusal(400, f"{param}.content is missing.", param=f"{param}.content")
    more: dict[str, Any] = {}
    if message.reasoning_content is not None:
        more |= {"reasoning_content": message.reasoning_content, "thinking": message.reasoning_content}
    if message.tool_calls:
        more["tool_calls"] = [
            {"id": one.id, **ToolCall(name=one.function.name, arguments=one.function.arguments).as_message()}
            for one in message.tool_calls
        ]
        names |= {one.id: one.function.name for one in message.tool_calls}
    return more


def _openai_part(part: TextPart | ImagePart | AudioPart | VideoPart, param: str, media: Media) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image", "path": media.add_picture_url(f"{param}.image_url.url", part.image_url.url)}
    if isinstance(part, VideoPart):
        return {"type": "video", "path": media.add_video_url(f"{param}.video_url.url", part.video_url.url)}
    sound = part.input_audio
    return {"type": "audio", "path": media.add_sound(f"{param}.input_audio.data", sound.data, sound.format)}


def from_anthropic(turns: Sequence[Turn], system: Texts | None) -> tuple[Messages, Media]:
    """Messages in Anthropic's shape; otherwise as :func:`from_openai`."""
    made: Messages = []
    media = Media()
    names: dict[str, str] = {}
    if system is not None:
        made.append({"role": "system", "content": _plain(system)})
    for number, turn in enumerate(turns):
        if isinstance(turn.content, str):
            made.append({"role": turn.role, "content": turn.content})
            continue
        content: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        for place, block in enumerate(turn.content):
            param = f"messages.{number}.content.{place}"
            match block:
                case TextBlock():
                    content.append({"type": "text", "text": block.text})
                case ImageBlock():
                    source = block.source
                    name = media.add_picture(f"{param}.source.data", source.data, source.media_type)
                    content.append({"type": "image", "path": name})
                case VideoBlock():
                    clip = block.source
                    name = media.add_video(f"{param}.source.data", clip.data, clip.media_type)
                    content.append({"type": "video", "path": name})
                case ThinkingBlock():
                    thought = more.get("thinking", "") + block.thinking
                    more |= {"reasoning_content": thought, "thinking": thought}
                case ToolUseBlock():
                    names[block.id] = block.name
                    function = {"name": block.name, "arguments": block.input}
                    more.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
                case ToolResultBlock():
                    made.append(_result(block, param, names))
        # A turn that has only brought results is none of the user's.
        if content or more or not turn.content or turn.role == "assistant":
            made.append({"role": turn.role, "content": content, **more})
    return made, media


def _result(block: ToolResultBlock, param: str, names: Mapping[str, str]) -> dict[str, Any]:
    """What came of a call, as a turn of the tool."""
    if block.tool_use_id not in names:
        param = f"{param}.tool_use_id"
        raise Refusal(400, f"{param}: there is no call with this id before.", param=param)
    text = _plain(block.content)
    return {
        "role": "tool",
        # Templates have no other place for it.
        "content": f"Error: {text}" if block.is_error else text,
        "tool_call_id": block.tool_use_id,
        "name": names[block.tool_use_id],
    }


def _plain(texts: Texts) -> str:
    return texts if isinstance(texts, str) else "\n".join(block.text for block in texts)
