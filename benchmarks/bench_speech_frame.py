"""Where the time of a frame of speech goes, and what its codes lose: random weights of the released dimensions.

A frame is 80 ms of sound. The talker takes one step for it, the code predictor fifteen passes, and code2wav makes the
sound of some frames at once. What counts is bytes: a pass of the predictor reads 157 MB of weights in bfloat16, 81 MB
in int8, and nothing of it stays in the caches. Fifteen times 81 MB at 14 GB/s are 87 ms.

- **The predictor alone**: transformers' own ``generate`` in bfloat16; the loop of Coterie, in bfloat16; the same with
  weights in int8 and int4, which is native. One frame each in turn.
- **A frame**: a whole model from stores with different schemes. The talker's steps are those of ``coterie generate
  --speak``; the vocoder decodes 25 frames at a time. Time of the parts is that of their calls; the loop is the rest.
- **Codes**: Kullback-Leibler divergence of the distributions of codes, of the same frames, from those in float32.

Times of the processor stand beside those of the clock: on a busy machine, threads wait for each other.

    python benchmarks/bench_speech_frame.py --threads 1
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report
from speech.codes import Divergence, divergence, in_scheme, logits_of, sampled
from speech.model import config_of, predictor_of, store_of

FRAME_MS = 80.0
SCHEMES = ("int8", "int4")
WAYS = {
    "predictor native": "encoders=native,rest=int8",
    "predictor int8": "encoders=native,predictor=int8,rest=int8",
    "predictor int4, all int4": "encoders=native,predictor=int4,rest=int4",
}
"""Stores by what is said of them, and their schemes outside experts."""

_Lap = tuple[float, float]
"""Seconds of the clock and of the processor."""


def now() -> _Lap:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def since(begun: _Lap) -> _Lap:
    """What has gone by on both."""
    wall, processor = now()
    return wall - begun[0], processor - begun[1]


def middle(laps: list[_Lap]) -> str:
    """Medians of both, in milliseconds."""
    wall, processor = (1e3 * median(one) for one in zip(*laps, strict=True))
    return f"{wall:.1f} / {processor:.1f}"


def predictor_alone(report: Report, config: Any, rounds: int) -> dict[str, float]:
    """Times a frame of each way to predict its codes; returns milliseconds of the processor."""
    from coterie.hf.code_predictor import predicting

    torch.manual_seed(0)
    plain = predictor_of(config)
    # Weights of its own each, or one would find the other's in the caches.
    ways = {"bfloat16": plain, **{scheme: in_scheme(plain, scheme) for scheme in SCHEMES}}
    laps: dict[str, list[_Lap]] = defaultdict(list)

    def timed(name: str, predictor: Any) -> None:
        embeddings = torch.randn(1, 2, predictor.config.hidden_size).bfloat16()
        begun = now()
        sampled(predictor, embeddings)
        laps[name].append(since(begun))

    for number in range(rounds + 1):
        timed("bfloat16, transformers' generate", plain)
        with ExitStack() as stack:
            for predictor in ways.values():
                stack.enter_context(predicting(predictor))
                sampled(predictor, torch.randn(1, 2, predictor.config.hidden_size).bfloat16())  # it is prepared once
            for name, predictor in ways.items():
                timed(name, predictor)
        if number == 0:
            laps.clear()
    table = report.table("The code predictor alone, a frame:", ("way", "ms, clock / processor"))
    table.rows.extend((name, middle(taken)) for name, taken in laps.items())
    return {name: 1e3 * median(lap[1] for lap in taken) for name, taken in laps.items()}


@contextmanager
def timing(model: Any, laps: dict[str, list[_Lap]]) -> Iterator[None]:
    """Inside, frames of a talker note what its forward and its code predictor take."""
    from coterie.hf.code_predictor import predicting

    begun: list[_Lap] = []
    predictor = model.talker.code_predictor

    def note(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = call(*args, **kwargs)
            laps[name].append(since(start))
            return result

        return noted

    before = model.talker.register_forward_pre_hook(lambda *_: begun.append(now()))
    after = model.talker.register_forward_hook(lambda *_: laps["talker"].append(since(begun.pop())))
    try:
        with predicting(predictor):
            # Of the instance, and taken away again with the other.
            predictor.generate = note("code predictor", predictor.generate)
            yield
    finally:
        before.remove()
        after.remove()


def speak(model: Any, frames: int) -> dict[str, list[_Lap]]:
    """Says some frames, each of which notes what its parts take."""
    from coterie.generation.sequence import Sequence
    from coterie.generation.steps import generated
    from coterie.hf.generation_steps import prepare

    talker, laps = model.talker, defaultdict[str, list[_Lap]](list)
    width = talker.config.text_config.hidden_size
    embeddings, text = torch.randn(1, 12, width).bfloat16(), torch.randn(1, 8, width).bfloat16()
    whole: list[_Lap] = []
    prepared = prepare(
        talker, inputs_embeds=embeddings, trailing_text_hidden=text, tts_pad_embed=text[:, :1],
        talker_input_ids=torch.ones(1, 12, dtype=torch.long), max_new_tokens=frames + 1, do_sample=True, top_k=50,
        temperature=0.9, eos_token_id=None, output_hidden_states=True,
    )  # fmt: skip
    with timing(model, laps):
        generated(Sequence(prepared, keep=lambda _: whole.append(now())))
    ends = zip(whole[1:], whole, strict=False)
    laps["all"] = [(later[0] - first[0], later[1] - first[1]) for later, first in ends]
    laps["talker"] = laps["talker"][1:]  # the first is over the prompt
    frames_of = zip(laps["all"], laps["talker"], laps["code predictor"], strict=True)
    laps["loop"] = [tuple(whole - a - b for whole, a, b in zip(*one, strict=True)) for one in frames_of]  # type: ignore[misc]
    return laps


def sound(model: Any, chunks: int, frames: int = 25) -> list[_Lap]:
    """Makes sound of random codes; what a frame of each chunk takes."""
    from coterie.generation.vocoder import Vocoder

    config, taken = model.code2wav.config, []
    vocoder = Vocoder(model.code2wav)
    for _ in range(chunks):
        codes = torch.randint(0, config.codebook_size, (config.num_quantizers, frames))
        begun = now()
        vocoder.decode(codes)
        wall, processor = since(begun)
        taken.append((wall / frames, processor / frames))
    return taken[1:]


def whole_frames(report: Report, folder: Path, arguments: Any, rounds: int) -> dict[str, float]:
    """Times frames of whole models; returns real-time factors by the clock."""
    import coterie

    frames = 4 if arguments.quick else 12
    laps: dict[str, dict[str, list[_Lap]]] = {name: defaultdict(list) for name in WAYS}
    with ExitStack() as stack:
        models = {}
        for name, dense in WAYS.items():
            store = store_of(folder, dense, small=arguments.quick)
            models[name] = coterie.load(store, expert_memory="100%", max_context=256, threads=arguments.threads)
            stack.callback(models[name].coterie.close)
            speak(models[name], 2)  # every expert is read, and all else is made
        for _ in range(rounds):
            for name, model in models.items():
                for part, taken in speak(model, frames).items():
                    laps[name][part] += taken
        vocoder = sound(next(iter(models.values())), 2 if arguments.quick else 5)
    parts_of = ("talker", "code predictor", "loop", "code2wav", "all")
    columns = ("ms of a frame, clock / processor", *parts_of, "real-time factor")
    table = report.table(f"A frame of speech ({FRAME_MS:.0f} ms), experts in int4 and in memory:", columns)
    factors = {}
    for name, parts in laps.items():
        spent = {part: [1e3 * median(one) for one in zip(*taken, strict=True)] for part, taken in parts.items()}
        made = [1e3 * median(one) for one in zip(*vocoder, strict=True)]
        total = [spent["all"][i] + made[i] for i in (0, 1)]
        cells = (spent["talker"], spent["code predictor"], spent["loop"], made, total)
        factors[name] = total[0] / FRAME_MS
        texts = [f"{wall:.1f} / {processor:.1f}" for wall, processor in cells]
        table.rows.append((name, *texts, f"{factors[name]:.2f} / {total[1] / FRAME_MS:.2f}"))
    return factors


def quality(report: Report, config: Any, frames: int) -> dict[str, Divergence]:
    """Compares distributions of codes with those in float32."""
    torch.manual_seed(1)
    plain = predictor_of(config)
    wide = predictor_of(config).float()
    wide.load_state_dict({name: weight.float() for name, weight in plain.state_dict().items()})
    begun = [torch.randn(1, 2, plain.config.hidden_size).bfloat16() for _ in range(frames)]
    said = [sampled(plain, one) for one in begun]

    def logits(predictor: Any) -> list[torch.Tensor]:
        return [logits_of(predictor, one, codes) for one, codes in zip(begun, said, strict=True)]

    reference = logits(wide)
    found = {"bfloat16": divergence(reference, logits(plain))}
    found |= {scheme: divergence(reference, logits(in_scheme(plain, scheme))) for scheme in SCHEMES}
    found["int8, layers called one by one"] = divergence(reference, logits(in_scheme(plain, "int8", native=False)))
    total = found["bfloat16"]
    caption = f"Codes beside those in float32 ({total.codes:,} of {frames} frames, entropy {total.entropy:.2f} nats):"
    table = report.table(caption, ("weights", "mean KLD, nats", "same likeliest code"))
    table.rows.extend((name, f"{one.kld:.5f}", f"{one.same_top:.1%}") for name, one in found.items())
    return found


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    parser.add_argument("--no-whole", action="store_true", help="leave out the whole model, which takes 5 GB of disk")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    wait_until_quiet(arguments.wait_quiet)
    torch.set_num_threads(arguments.threads)
    name = "speech_frame" if arguments.threads > 1 else "speech_frame_one_thread"
    report = Report(name, "A frame of speech", work=arguments.work_dir, quick=arguments.quick)
    rounds, config = 2 if arguments.quick else 9, config_of(small=arguments.quick)
    alone = predictor_alone(report, config, rounds)
    report.require(
        "a frame's codes in int8 take at most half of what they take in bfloat16",
        f"{alone['int8']:.1f} against {alone['bfloat16']:.1f} ms of the processor",
        arguments.quick or alone["int8"] <= alone["bfloat16"] / 2,
    )
    found = quality(report, config, 2 if arguments.quick else 24)
    report.require(
        "codes in int8 are nearer to those in float32 than codes in int4",
        f"{found['int8'].kld:.5f} and {found['int4'].kld:.5f} nats",
        found["int8"].kld < found["int4"].kld,
    )
    report.values |= {"predictor, ms": alone, "codes": {name: one._asdict() for name, one in found.items()}}
    if not arguments.no_whole:
        factors = whole_frames(report, arguments.work_dir / "speech", arguments, 1 if arguments.quick else 5)
        report.values["real-time factors"] = factors
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
