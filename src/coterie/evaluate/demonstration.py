"""The bundled model at work: extracted, run with a quarter of its experts in memory, proved exact, heard, cut down.

Prints nothing: tells each result as it is there and returns them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coterie.engine.opening import open_streamed
from coterie.evaluate.exactness import Case, Exactness, Likeness, compare_exactly, likeness
from coterie.evaluate.spoken import Spoken, spoken_words
from coterie.extraction import ProgressCallback, extract
from coterie.files.naming import BUNDLED, resolve_path
from coterie.generation.completion import Completion, complete
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROMPTS = (
    ("prose", "And it came to pass"),
    ("technical", "The function returns"),
    ("code", "def __init__(self"),
    ("dialogue", "Hello, how are you"),
    ("chinese", "春"),
    ("german", "Sie können"),
)
"""Domain and prompt: what the bundled model was trained on."""

EXPERT_MEMORY = "25%"
SPEAKING_MEMORY = "50%"
"""Of the omni model, whose thinker and talker share it."""
PARTIAL_EXPERTS = "0-7"
POLICIES: tuple[Literal["mask", "drop"], ...] = ("mask", "drop")
_PARTIAL_DOMAINS = ("prose", "german")
_SAMPLED = Sampling(max_new_tokens=40, temperature=0.7, top_p=0.9, seed=7)
_NAMED = Sampling(max_new_tokens=12, greedy=True)
_GREEDY_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part begins: ``extract``, ``generate``, ``prove``, ``speak`` or ``cut``."""

    name: Literal["extract", "generate", "prove", "speak", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """A store was made (or found complete).

    Attributes:
        store: Its directory.
        experts: Experts in it.
        experts_total: Experts that the model has.
        nbytes: Bytes of its files.
        seconds: Time taken.
    """

    store: Path
    experts: int
    experts_total: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt and what the model made of it.

    Attributes:
        domain: ``prose`` …, ``speech`` or ``picture``.
        prompt: The text, or the name of the file.
        completion: What came.
    """

    domain: str
    prompt: str
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the experts' cache did while the samples were made.

    Attributes:
        dense_bytes: Bytes of everything that is not an expert; always in memory.
        resident_bytes: Bytes of the experts in memory.
        total_expert_bytes: Bytes of all experts.
        hit_rate: Requests that found their expert in memory.
        decode_hit_rate: The same of decode steps alone.
        bytes_read: Bytes read from disk.
        decode_tokens_per_s: New tokens per second over all samples.
    """

    dense_bytes: int
    resident_bytes: int
    total_expert_bytes: int
    hit_rate: float
    decode_hit_rate: float
    bytes_read: int
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialText:
    """The same prompt and seed with all experts and with some.

    Attributes:
        prompt: The prompt.
        full: Text with all experts.
        texts: Policy for absent experts → text.
    """

    prompt: str
    full: str
    texts: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialView:
    """What is left of the model with few experts.

    Attributes:
        store: The partial store.
        texts: Text beside text.
        likeness: Policy → predictions compared with the full model's, over the texts of all domains.
    """

    store: Extracted
    texts: tuple[PartialText, ...]
    likeness: dict[str, Likeness]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """Everything that was shown.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        extracted: The whole store.
        samples: Texts, one spoken word, one picture.
        holding: Memory and speed meanwhile.
        exactness: Compared with stock transformers.
        spoken: A word in each voice of the omni model.
        partial: With few experts.
        seconds: Time taken in all.
    """

    schema_version: int
    extracted: Extracted
    samples: tuple[Sample, ...]
    holding: Holding
    exactness: Exactness
    spoken: tuple[Spoken, ...]
    partial: PartialView
    seconds: float


Happening = Stage | Extracted | Sample | Holding | Exactness | Spoken | PartialView


def samples_folder() -> Path:
    """Where the package keeps a spoken word and a picture."""
    return Path(resolve_path(BUNDLED)) / "samples"


def demonstrate(
    folder: Path,
    *,
    tell: Callable[[Happening], None] | None = None,
    progress: ProgressCallback | None = None,
) -> Demonstration:
    """Runs the demonstration.

    Args:
        folder: Where the stores ``full`` and ``partial`` are made; those of an earlier run are used again. What is
            spoken comes into ``spoken``.
        tell: Told each result as soon as it is there.
        progress: Told how far an extraction is.

    Raises:
        CoterieError: As extraction and loading do.
    """
    say = tell or _ignore
    start = time.perf_counter()
    say(Stage(name="extract"))
    extracted = _extract(folder / "full", None, progress)
    say(extracted)
    with _opened(extracted.store, Opening(expert_memory=EXPERT_MEMORY)) as model:
        opened = OpenModel.of(model)
        processors = opened.processors
        say(Stage(name="generate"))
        samples, cases = _make_samples(model, processors, say)
        holding = _holding(model, samples)
        say(holding)
        say(Stage(name="prove"))
        exactness, logits = compare_exactly(model, _stock(model.dtype), cases, greedy_tokens=_GREEDY_TOKENS)
        say(exactness)
        say(Stage(name="speak"))
        spoken = []
        question, opening = samples_folder() / "dog.wav", Opening(expert_memory=SPEAKING_MEMORY)
        for one in spoken_words(question, folder / "spoken", opened, opening):
            spoken.append(one)
            say(one)
    say(Stage(name="cut"))
    partial = _cut(folder / "partial", processors, samples, cases, logits, progress)
    say(partial)
    return Demonstration(
        schema_version=1,
        extracted=extracted,
        samples=tuple(samples),
        holding=holding,
        exactness=exactness,
        spoken=tuple(spoken),
        partial=partial,
        seconds=time.perf_counter() - start,
    )


def _ignore(_: Happening) -> None:
    pass


def _extract(store: Path, experts: str | None, progress: ProgressCallback | None) -> Extracted:
    report = extract(BUNDLED, store, experts=experts, progress=progress)
    return Extracted(
        store=store,
        experts=report.experts_present,
        experts_total=report.experts_total,
        nbytes=report.store_nbytes,
        seconds=report.seconds,
    )


@contextmanager
def _opened(store: Path, opening: Opening) -> Iterator[PreTrainedModel]:
    model = open_streamed(store, opening)
    try:
        yield model
    finally:
        model.coterie.close()


def _make_samples(
    model: PreTrainedModel, processors: Processors, say: Callable[[Happening], None]
) -> tuple[list[Sample], list[Case]]:
    """Generates from every prompt; returns the samples and the sequences they make."""
    sound, picture = samples_folder() / "dog.wav", samples_folder() / "sandal.png"
    wanted = [(domain, prompt, build_inputs(processors, prompt), _SAMPLED) for domain, prompt in PROMPTS]
    wanted.append(("speech", sound.name, build_inputs(processors, "", audios=[sound]), _NAMED))
    wanted.append(("picture", picture.name, build_inputs(processors, "", images=[picture]), _NAMED))
    samples, cases = [], []
    for domain, prompt, inputs, sampling in wanted:
        completion = complete(model, processors.tokenizer, inputs, sampling)
        samples.append(Sample(domain=domain, prompt=prompt, completion=completion))
        cases.append(Case(name=domain, inputs=inputs, token_ids=completion.token_ids))
        say(samples[-1])
    return samples, cases


def _holding(model: PreTrainedModel, samples: Sequence[Sample]) -> Holding:
    stats = model.coterie.stats()
    seconds = sum(sample.completion.decode_s for sample in samples)
    steps = sum(len(sample.completion.token_ids) - 1 for sample in samples)
    return Holding(
        dense_bytes=model.coterie.source.footprint.dense,
        resident_bytes=stats.resident_bytes,
        total_expert_bytes=stats.total_expert_bytes,
        hit_rate=stats.total.hit_rate,
        decode_hit_rate=stats.total.decode_hit_rate,
        bytes_read=stats.total.bytes_read,
        decode_tokens_per_s=steps / seconds if seconds > 0 else 0.0,
    )


def _stock(dtype: torch.dtype) -> PreTrainedModel:
    """The bundled checkpoint in transformers' own class, opened by transformers alone, all experts in memory."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    stock = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        resolve_path(BUNDLED), dtype=dtype, experts_implementation="eager", local_files_only=True
    )
    return stock.eval()


def _cut(
    store: Path,
    processors: Processors,
    samples: Sequence[Sample],
    cases: Sequence[Case],
    logits: Sequence[torch.Tensor],
    progress: ProgressCallback | None,
) -> PartialView:
    extracted = _extract(store, PARTIAL_EXPERTS, progress)
    chosen = [sample for sample in samples if sample.domain in _PARTIAL_DOMAINS]
    texts: dict[str, dict[str, str]] = {sample.prompt: {} for sample in chosen}
    found: dict[str, Likeness] = {}
    for policy in POLICIES:
        with _opened(store, Opening(expert_memory="100%", missing=policy)) as model:
            for sample in chosen:
                inputs = build_inputs(processors, sample.prompt)
                texts[sample.prompt][policy] = complete(model, processors.tokenizer, inputs, _SAMPLED).text
            found[policy] = likeness(model, cases[: len(PROMPTS)], logits[: len(PROMPTS)])
    return PartialView(
        store=extracted,
        texts=tuple(
            PartialText(prompt=sample.prompt, full=sample.completion.text, texts=texts[sample.prompt])
            for sample in chosen
        ),
        likeness=found,
    )
