"""Opens a whole omni model under a budget, answers in speech, prints what that took as JSON: a process of its own.

Phases are told from forward passes: the prompt is read until the thinker's first step after it, then there is text
until the talker's first pass, then speech until the sound has ended. Where the talker speaks while the thinker writes,
hardly anything is left of the text's phase.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any

OPEN, PROMPT, TEXT, SPEECH = "open", "prompt", "text", "speech"
PHASES = (OPEN, PROMPT, TEXT, SPEECH)
ENCODERS = ("thinker.visual.", "thinker.audio_tower.")
PREDICTOR, TALKER, THINKER, VOCODER = "code predictor", "talker", "thinker", "vocoder"


class Watch:
    """Tells phases from events, and notes when each began.

    Args:
        memory: What each phase holds.
        stopwatch: Of the model's parts.

    Attributes:
        began: Phase → when it began.
        thinking_s: What the thinker had taken when the talker began.
    """

    def __init__(self, memory: Any, stopwatch: Any) -> None:
        self._memory = memory
        self._stopwatch = stopwatch
        self.began: dict[str, float] = {}
        self.thinking_s = 0.0

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self.began[phase] = time.perf_counter()
        self.thinking_s = self._stopwatch.seconds[THINKER]
        self._memory.enter(phase)

    def on_event(self, event: Any) -> None:
        """Notes what the forward passes say."""
        component = getattr(event, "component", None)
        if not hasattr(event, "phase") or component is None:
            return
        if component == "talker" and self._memory.phase != SPEECH:
            self.enter(SPEECH)
        elif component == "thinker" and event.phase == "decode" and self._memory.phase == PROMPT:
            self.enter(TEXT)


class Speaker:
    """Answers one prompt in speech, again and again.

    Args:
        model: The model.
        given: Of the command line.
        watch: Of its phases.
        stopwatch: Of its parts.
        reads: Of its experts.
    """

    def __init__(self, model: Any, given: argparse.Namespace, watch: Watch, stopwatch: Any, reads: Any) -> None:
        import coterie

        self._model = model
        self._given = given
        self._watch = watch
        self._stopwatch = stopwatch
        self._reads = reads
        self._processors = coterie.processors(model)

    def answer(self, words: str) -> dict[str, Any]:
        """One answer: times in seconds, and what was read for it."""
        from coterie.generation.chat import chat_inputs, user_message
        from coterie.generation.sampling import Sampling
        from coterie.generation.speaking import Speaking
        from coterie.generation.speech import SPEECH_RATE, Voice

        given = self._given
        message = user_message(words, images=given.image or (), audios=given.audio or ())
        texts: list[float] = []
        sounds: list[tuple[float, int]] = []
        self._reads.of.clear()
        self._stopwatch.clear()
        self._watch.began.clear()
        self._watch.enter(PROMPT)
        began, began_cpu = time.perf_counter(), time.process_time()
        inputs = chat_inputs(self._processors, [message])
        speaking = Speaking(
            self._model,
            self._processors.tokenizer,
            inputs,
            Sampling(max_new_tokens=given.new_tokens, greedy=True, seed=1),
            voice=Voice(max_seconds=given.seconds, greedy=given.voice_greedy),
        )
        speech = speaking.tell(
            on_text=lambda text: texts.append(time.perf_counter()),
            on_sound=lambda samples: sounds.append((time.perf_counter(), len(samples))),
        )
        ended, thinking_s = time.perf_counter(), self._watch.thinking_s
        self._watch.enter(OPEN)
        # What the thinker does while the talker speaks is text's, and what is done for speech before its first pass is
        # speech's.
        speaking_at = self._watch.began.get(SPEECH, ended)
        from_s = max(at for at in (texts[0], *texts) if at <= speaking_at)
        return {
            "prompt_tokens": int(inputs["input_ids"].shape[1]),
            "text": speech.completion.text,
            "tokens": len(speech.completion.token_ids),
            "sound_s": len(speech.samples) / SPEECH_RATE,
            "ended": speech.finish_reason,
            "first_text_s": texts[0] - began,
            "first_sound_s": sounds[0][0] - texts[0],
            "last_text_s": texts[-1] - began,
            "speech_s": ended - from_s - (self._stopwatch.seconds[THINKER] - thinking_s),
            "all_s": ended - began,
            "cpu_s": time.process_time() - began_cpu,
            "chunks": [[at - began, count / SPEECH_RATE] for at, count in sounds],
            "parts_s": dict(self._stopwatch.seconds),
            "calls": dict(self._stopwatch.calls),
            "reads": {name: self._reads.component(name) for name in ("thinker", "talker")},
        }


def plain(value: Any) -> Any:
    """A plan as JSON can have it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def opened(given: argparse.Namespace) -> Any:
    """The model."""
    import coterie

    options = {name: getattr(given, name) for name in ("profile", "warm", "pin") if getattr(given, name) is not None}
    return coterie.load(
        given.model, memory=given.memory, max_context=given.max_context, threads=given.threads, **options
    )


def encoder_schemes(model: Any) -> list[str]:
    """The schemes that weights of the encoders are in; ``native`` if they are in none."""
    from coterie.origins.stored_dense import dense_headers
    from coterie.spec.encodings import NATIVE, SCHEME_FORMATS

    names = list(dense_headers(model.coterie.source.store))
    found = [
        scheme
        for scheme, form in SCHEME_FORMATS.items()
        if any(name.startswith(ENCODERS) and name.endswith(form.ends[0][0]) for name in names)
    ]
    return found or [NATIVE]


def main() -> int:
    """Runs what the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a store of a whole omni model")
    parser.add_argument("words", nargs="+", help="what is said to it, an answer to each")
    parser.add_argument("--memory")
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--image", action="append")
    parser.add_argument("--audio", action="append")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="of speech, at most")
    parser.add_argument("--voice-greedy", action="store_true")
    parser.add_argument("--profile")
    parser.add_argument("--warm")
    parser.add_argument("--pin")
    parser.add_argument("--record-profile")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")
    print(json.dumps(run(given)))
    return 0


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Opens the model and answers; everything that was measured."""
    from coterie.generation.vocoder import Vocoder
    from coterie.hf.code_predictor import _Frames
    from harness.counted_reads import CountedReads
    from harness.phase_memory import PhaseMemory
    from harness.stopwatch import Stopwatch

    memory, stopwatch, reads = PhaseMemory(OPEN), Stopwatch(), CountedReads()
    with ExitStack() as stack:
        stack.enter_context(reads.counting())
        stack.enter_context(stopwatch.method(PREDICTOR, _Frames, "__call__"))
        stack.enter_context(stopwatch.method(VOCODER, Vocoder, "decode"))
        began = time.perf_counter()
        model = stack.enter_context(opened(given))
        open_s = time.perf_counter() - began
        watch = Watch(memory, stopwatch)
        model.coterie.add_observer(watch)
        stopwatch.module(THINKER, model.thinker)
        stopwatch.module(TALKER, model.talker)
        if given.record_profile:
            stack.enter_context(model.coterie.record_profile(given.record_profile))
        speaker = Speaker(model, given, watch, stopwatch, reads)
        answers, peaks = [], []
        for words in given.words:
            answers.append(speaker.answer(words))
            peaks.append(dict(memory.peaks))
            memory.peaks.clear()
        stats = model.coterie.stats()
        return {
            "open_s": open_s,
            "plan": plain(model.coterie.plan),
            "encoders": encoder_schemes(model),
            "answers": answers,
            "peaks": peaks,
            "capacity": stats.capacity,
            "talker_nbytes": sum(
                one.nbytes for one in model.coterie.source.store.manifest.banks if one.key.component == "talker"
            ),
            "frame_s": int(model.code2wav.total_upsample) / 24_000,
        }


if __name__ == "__main__":
    sys.exit(main())
