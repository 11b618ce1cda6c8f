"""One request as an engine works on it: from its prompt to a sequence in steps, and from that to its answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from coterie.errors import ContextLengthError, CoterieError, UnsupportedError
from coterie.generation.answer_form import answer_form
from coterie.generation.asked import Prompt
from coterie.generation.completion import Completing, Reuse, most_tokens
from coterie.generation.decoding import beside_passes
from coterie.generation.draws import Draws, drawing
from coterie.generation.governor import Governor
from coterie.generation.logprobs import TokenLogprob
from coterie.generation.one_sequence import files_named, longest
from coterie.generation.opened import OpenModel
from coterie.generation.prefixes import Prefixes
from coterie.generation.preparers import UNKNOWN_NBYTES, Work
from coterie.generation.provenance import Provenance, ProvenanceMeter
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Sequence
from coterie.generation.shaping import check
from coterie.generation.speech import SPEECH_RATE, Speech, Voice
from coterie.generation.spoken_answer import SpokenAnswer, check_spoken, speech_error
from coterie.generation.steps import Steps
from coterie.generation.talking import TALKER_MARKS
from coterie.generation.tickets import Part, Piece, Prepared, Progress, SoundChunk, Ticket
from coterie.generation.toolbox import Toolbox
from coterie.hf.caches import reserved_length
from coterie.hf.generation_steps import one_by_one
from coterie.hf.talker import writing_part
from coterie.passes.current import Request, Stated

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase

    from coterie.generation.completion import Completion
    from coterie.generation.sequence import Keeper
    from coterie.hf.generation_steps import Prepared as PreparedPrompt


class Job:
    """One request.

    Args:
        ticket: What its maker sees of it.
        prepare: Makes its prompt.
        sampling: How tokens are chosen.
        meter: Counts what it takes of experts; None where nobody wants to know.
        salt: Whose it is: it begins with nothing that was computed for others.
        nbytes: How long what it asks is.
        repeated: Whether others have the same prompt.
        domain: What it is about, for profiles.
        voice: How its answer is spoken; None for text alone.

    Attributes:
        ticket: That given.
        salt: That given.
        nbytes: That given.
        work: What a thread was handed for it last; None before.
        repeated: That given.
        request: As whom its passes are known.
        wanted: Whether nobody has given it up.
        meter: That given.
        prompt: What it is to continue, once that is prepared.
        most: Tokens whose keys and values it can come to need; those of the whole room, until its length is known.
        alone: Whether its generation is one call of transformers', with nobody beside it.
        sequence: Its sequence, once it takes part in steps.
        media_nbytes: Bytes of its pictures and sounds, for as long as it has them.
        speech: Its answer with its sound, once that is whole and if it is spoken.
    """

    def __init__(
        self,
        ticket: Ticket,
        prepare: Callable[[], Prompt],
        sampling: Sampling,
        *,
        meter: ProvenanceMeter | None = None,
        salt: str = "",
        nbytes: int = UNKNOWN_NBYTES,
        repeated: bool = False,
        domain: str | None = None,
        voice: Voice | None = None,
    ) -> None:
        self.ticket = ticket
        self.nbytes = nbytes
        self.work: Work | None = None
        self.salt = salt
        self.repeated = repeated
        self.request = Request(domain)
        self.wanted = True
        self.meter = meter
        self.prompt: Prompt | None = None
        self.most = 0
        self.alone = False
        self.sequence: Sequence | None = None
        self.media_nbytes = 0
        self.speech: Speech | None = None
        self._voice = voice
        self._spoken: SpokenAnswer | None = None
        self._open = ExitStack()
        self._prepare = prepare
        self._sampling = sampling
        self._completing: Completing | None = None
        # Of pictures, of sounds, and of videos.
        self._media_tokens = (0, 0, 0)
        # Tokens that it has room for from its first pass on, where that does not grow with it.
        self._reserved = 0
        self._draws: Draws | None = None
        self._inputs: BatchFeature | None = None
        # What is told with the next piece.
        self._heard: list[TokenLogprob] = []
        self._of_prompt: list[TokenLogprob] = []

    @property
    def coming(self) -> int:
        """Tokens whose keys and values it has after its next pass."""
        # Tokens of the thinker and of the talker are counted alike: each has room for as many.
        return max((self._reserved, *(one.position + one.coming for one in self.sequences if not one.ended)))

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Those that take part in steps."""
        if self._spoken is not None:
            return self._spoken.sequences
        return () if self.sequence is None else (self.sequence,)

    @property
    def over(self) -> bool:
        """Whether its answer has come to its end, or something has ended it."""
        if self._spoken is not None:
            return self._spoken.over
        return self.sequence is not None and self.sequence.ended

    @property
    def ends_apart(self) -> bool:
        """Whether its answer, once it is computed, is not to be waited for by whoever computes others."""
        return self.prompt is not None and self.prompt.reader is not None and self.prompt.reader.apart

    @property
    def provenance(self) -> Provenance | None:
        """What it took of experts, if that is counted."""
        if self.meter is None:
            return None
        return self.meter.told("exact" if self.sequence is None or self.sequence.exact else "fast")

    def prepare(self, opened: OpenModel) -> Prompt:
        """Makes its prompt, in whatever thread, and finds out what it can come to need.

        Raises:
            CoterieError: If it is none that the model can continue.
        """
        prompt = self._prepare()
        model = opened.model
        tokenizer = opened.processors.tokenizer
        self._sampling = _in_the_models_words(self._sampling, prompt, tokenizer)
        check(model, tokenizer, self._sampling)
        if self._voice is not None:
            check_spoken(model, self._sampling, self._voice)
        config = self._sampling.generation_config(model.generation_config)
        self.alone = not one_by_one(writing_part(model), config)
        if self.alone and self._voice is not None:
            raise UnsupportedError(
                f"The generation settings of {opened.runtime.source.name} ask for a way to write in which nothing is "
                "spoken while others are served.",
                advice="Leave speech out, or speak with coterie.speak.",
            )
        room = longest(model, config)
        if prompt.tokens is not None:
            inputs = prompt.inputs()
            self._check_length(inputs, room)
            self.most = self._most_tokens(opened, inputs)
        else:
            # How many tokens its pictures and sounds make is not known yet.
            self.most = room or 0
        return prompt

    @property
    def decodes(self) -> bool:
        """Whether its pictures and sounds are still to be decoded."""
        return self.prompt is not None and self.prompt.tokens is None and self._inputs is None

    def decode(self, room: int | None) -> None:
        """Decodes its pictures and sounds while passes go on, in another thread than the model's.

        If there is no room for that beside passes, it is still to be done then.

        Args:
            room: Bytes that it may take; None for any number.

        Raises:
            CoterieError: If a picture or sound cannot be used.
        """
        assert self.prompt is not None
        with beside_passes(room, lambda: self.ticket.phase != "over") as beside:
            try:
                self._inputs = self.prompt.inputs()
            except Exception:  # callers say in their own errors what was wrong
                if not beside.short:
                    raise

    def decode_between(self) -> None:
        """The same while no pass goes on, where there is more room."""
        assert self.prompt is not None
        self._inputs = self.prompt.inputs()

    def begin(self, opened: OpenModel, reuse: Reuse) -> None:
        """Makes its inputs, and its sequence if it has one; in the model's thread, between two passes.

        Args:
            opened: The model.
            reuse: Where it finds what was computed of its beginning, and what a piece of a prompt is.

        Raises:
            CoterieError: If a picture or sound cannot be used, or the settings ask for what cannot be done.
        """
        prompt, model = self.prompt, opened.model
        assert prompt is not None
        inputs, self._inputs = prompt.inputs() if self._inputs is None else self._inputs, None
        self.ticket.tell(Prepared(int(inputs["input_ids"].shape[1])))
        config = self._sampling.generation_config(model.generation_config)
        self._check_length(inputs, longest(model, config))
        if prompt.tokens is None:
            tensors = [one for one in inputs.values() if isinstance(one, torch.Tensor)]
            self.media_nbytes = sum(one.nbytes for one in tensors)
            self.most = self._most_tokens(opened, inputs)
            made = opened.processors
            self._media_tokens = (
                _count(inputs, made.picture_token),
                _count(inputs, made.sound_token),
                _count(inputs, made.video_token),
            )
        with files_named(model), Stated(self.request):
            self._completing = Completing(
                model,
                opened.processors.tokenizer,
                inputs,
                self._sampling,
                on_text=self._on_text(prompt),
                reader=prompt.reader,
                on_logprobs=self._heard.extend,
                on_prompt_logprobs=self._of_prompt.extend,
                speech=self._voice is not None,
            )
            if not self.alone:
                seed = self._sampling.seed
                self._draws = None if seed is None else Draws(seed)
                if self._voice is not None:
                    self._spoken = self._speaking(model, inputs, self._voice)
                    # What speaks stays in memory between its passes and those of others.
                    self._open.enter_context(model.coterie.speaking())
                if self.is_given:
                    return
                if self._spoken is None:
                    self.sequence = self._completing.sequence(self.request, draws=self._draws, reuse=reuse)
                else:
                    self.sequence = self._spoken.begin(reuse)
                self.sequence.encode_apart()
                kept = self.sequence.cache
                if model.config.is_encoder_decoder:
                    self._reserved = self.most
                elif kept is not None:
                    self._reserved = reserved_length(kept)

    def _speaking(self, model: PreTrainedModel, inputs: BatchFeature, voice: Voice) -> SpokenAnswer:
        """An answer that is spoken."""
        assert self._completing is not None
        return SpokenAnswer(
            model, inputs, self._completing, voice, self.request, draws=self._draws,
            on_sound=lambda samples: self.ticket.tell(SoundChunk(samples, SPEECH_RATE)),
        )  # fmt: skip

    @property
    def is_given(self) -> bool:
        """Whether its text is given, and only to be spoken."""
        return self._voice is not None and self.prompt is not None and self.prompt.said is not None

    def say(self, opened: OpenModel, steps: Steps) -> None:
        """Begins to speak a text that :attr:`is_given`; its talker takes part in steps from now on."""
        assert self._spoken is not None
        assert self.prompt is not None
        assert self.prompt.said is not None
        with files_named(opened.model), Stated(self.request):
            self._spoken.begin_said(self.prompt.said, steps)

    def close(self) -> None:
        """Lets go of what it needed to speak. Harmless when repeated."""
        self._open.close()

    def follow(self, steps: Steps) -> None:
        """Sees to the sound of its answer after a step, if it has one.

        Raises:
            BaseException: What ended it before its time.
        """
        if self._spoken is not None:
            self._spoken.follow(steps)

    def search(self, opened: OpenModel) -> None:
        """Generates in one call, if it is :attr:`alone`."""
        assert self._completing is not None
        with Stated(self.request), drawing(self._sampling.seed) as draws, files_named(opened.model):
            self._completing.search(draws)

    def note_progress(self) -> None:
        """A pass is over; tells how far the prompt has been read."""
        sequence, ticket = self.sequence, self.ticket
        if sequence is None or ticket.phase != "prefill":
            return
        if not sequence.reading:
            self._begin_answer()
        elif sequence.position > ticket.read_tokens:
            ticket.tell(Progress(sequence.position, ticket.prompt_tokens or sequence.position, sequence.reused))

    def _begin_answer(self) -> None:
        """The prompt has been read."""
        ticket = self.ticket
        if ticket.phase == "prefill":
            ticket.phase = "decode"
            tokens = ticket.prompt_tokens or 0
            ticket.tell(Progress(tokens, tokens, 0 if self.sequence is None else self.sequence.reused))

    def end(self, opened: OpenModel) -> Completion:
        """Its answer; of one that is spoken, its :attr:`speech` is there afterwards.

        Raises:
            BaseException: What ended it before its time.
        """
        prompt = self.prompt
        assert self._completing is not None
        assert prompt is not None
        if self.sequence is not None:
            with files_named(opened.model):
                self.sequence.check()
        pictures, sounds, videos = self._media_tokens
        completion = replace(
            self._completing.end(), picture_tokens=pictures, sound_tokens=sounds, video_tokens=videos
        )  # fmt: skip
        if prompt.calls is not None:
            prompt.calls.end()
            calls = (*completion.tool_calls, *prompt.calls.calls)
            completion = replace(completion, text=prompt.calls.text, tool_calls=calls)
        if self._spoken is not None:
            self.speech = self._spoken.speech(completion)
            if isinstance(failed := self._spoken.talking.error, CoterieError):
                raise speech_error(failed, self.speech)
        return completion

    def _most_tokens(self, opened: OpenModel, inputs: BatchFeature) -> int:
        """Tokens whose keys and values it can come to need, in its longest sequence."""
        model = opened.model
        most = most_tokens(model, opened.processors.tokenizer, inputs, self._sampling)
        if self._voice is None:
            return most
        # What it speaks comes after its prompt, too.
        spoken = int(inputs["input_ids"].shape[1]) + TALKER_MARKS + self._voice.most_frames(model.code2wav)
        room = longest(model, model.talker.generation_config)
        return max(most, spoken if room is None else min(room, spoken))

    def _on_text(self, prompt: Prompt) -> Callable[[str], None]:
        if prompt.reader is not None:
            prompt.reader.on_reasoning = self._teller("reasoning")
        on_text = self._teller("text")
        if prompt.calls is not None:
            prompt.calls.on_text, on_text = on_text, prompt.calls.feed
        return on_text

    def _teller(self, part: Part) -> Callable[[str], None]:
        ticket = self.ticket

        def tell(text: str) -> None:
            self._begin_answer()
            ticket.tell(Piece(part, text, tuple(self._heard), tuple(self._of_prompt)))
            self._heard.clear()
            self._of_prompt.clear()

        return tell

    @staticmethod
    def _check_length(inputs: BatchFeature, room: int | None) -> None:
        length = int(inputs["input_ids"].shape[1])
        if room is not None and length > room:
            raise ContextLengthError(
                f"The prompt has {length} tokens; there is room for {room}.",
                advice="Open the model with a larger max_context, or use a shorter prompt.",
                tokens=length,
                max_context=room,
            )


def _count(inputs: BatchFeature, token: int | None) -> int:
    return 0 if token is None else int((inputs["input_ids"] == token).sum())


class Beginning:
    """What a request's prompt is found to begin with: put into its cache once there is room for it.

    Args:
        job: The request.
        prefixes: Beginnings of prompts.
        governor: Makes the room.
    """

    def __init__(self, job: Job, prefixes: Prefixes, governor: Governor) -> None:
        self._job = job
        self._prefixes = prefixes
        self._governor = governor

    @property
    def piece(self) -> int:
        """Tokens of a prompt in one pass."""
        return self._prefixes.piece

    def begin(self, prepared: PreparedPrompt) -> Keeper | None:
        """As :meth:`~coterie.generation.prefixes.Prefixes.begin`."""
        job = self._job

        def make_room(tokens: int) -> None:
            self._governor.hold(job, tokens, job.media_nbytes)

        return self._prefixes.begin(prepared, job.salt, make_room=make_room, ends=job.repeated)


def _in_the_models_words(sampling: Sampling, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """How tokens are chosen, with a form that begins where the answer does, after the model's reasoning."""
    form = prompt.form
    if form is None:
        form = sampling.grammar
        if form is not None and prompt.reader is not None:
            form = answer_form(tokenizer, None, prompt.reader, Toolbox(), form)
    return replace(sampling, grammar=form, stop=(*sampling.stop, *prompt.ends))
