"""A whole Qwen3-Omni that sees, hears and speaks within 8 GiB: whether it fits, how fast it speaks, where time goes.

A frame of sound lasts 80 ms. In that time its talker takes a step (attention and experts of 20 layers), its code
predictor fifteen steps (2.4 GB of weights are read for a frame in bfloat16, so that memory's speed is the ceiling), and
its vocoder decodes. The real-time factor is seconds of work per second of sound; below 1 sound comes as fast as it is
heard. The thinker's steps are not in it, wherever they come.

The model has the released dimensions and random weights, see fullsize/omni. The prompt has a picture and 10 seconds of
sound. Each run is a process of its own in a memory cgroup as large as its budget, and gives two answers: the first
reads experts and compiles kernels, the second finds what the first left.

- *speed*: a short prompt, by threads.
- *memory*: prompts that fill the context, since memory is set aside for one. The kernel's mark of what the process
  held at most is reset at each phase and compared with the plan. Experts have all of their memory by the second answer
  at the latest, also where new memory is slow to come by.
- *warm*: what a profile of such answers saves, warming alone and with pins: reads of experts that had been read before,
  and the time to the first sound.
"""

from __future__ import annotations

import json
import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fullsize.files import Files
from fullsize.omni.configuration import OMNI_SHAPES, RELEASED, SMALL, thinker
from fullsize.walk import text_of
from harness.cgroup import CgroupRun, CgroupUnavailable, run_in_cgroup
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.page_cache import drop
from harness.report import Report, Table
from harness.speaking import PHASES, PREDICTOR, TALKER, VOCODER

GIB = 1 << 30
MIB = 1 << 20
MOST_RTF = {1: 2.5, 2: 1.5}
"""Threads → real-time factor."""
MOST_WAIT_S = 2.5
"""From the first token of the text to the first sound."""
LEAST_EXPERTS = 4.5 * GIB
MOST_OVER = 1.1
"""What is planned, of what is held."""

_HERE = Path(__file__).resolve().parent
_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is shown and played before each text.

    Attributes:
        picture: A file.
        sound: A file.
    """

    picture: Path
    sound: Path


def make_prompt(folder: Path, *, width: int, height: int, seconds: float) -> Prompt:
    """A picture of colours that run into each other, and a sound that rises."""
    from PIL import Image

    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    prompt = Prompt(picture=folder / f"speech-{width}x{height}.png", sound=folder / f"speech-{seconds:g}s.wav")
    Image.fromarray(pixels).save(prompt.picture)
    at = np.arange(int(seconds * _RATE)) / _RATE
    samples = np.sin(2 * np.pi * (200 + 300 * at / seconds) * at) * 8000
    with wave.open(str(prompt.sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return prompt


def spoken(
    store: Path, prompt: Prompt, words: list[str], given: Any, limit: int, *, seconds: float, **settings: Any
) -> dict[str, Any]:
    """Answers in a cgroup of ``limit`` bytes: what the process measured, and what it held."""
    flags: list[str] = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", str(value)] if value is not True else [f"--{name.replace('_', '-')}"]
    command = [
        sys.executable, "-m", "harness.speaking", str(store), *words, "--memory", str(limit),
        "--max-context", str(given.context), "--new-tokens", str(given.new_tokens), "--seconds", str(seconds),
        "--image", str(prompt.picture), "--audio", str(prompt.sound), *flags,
    ]  # fmt: skip
    drop([store])
    run = run_in_cgroup(command, limit, env={"PYTHONPATH": str(_HERE)})
    if run.returncode and not run.killed:
        raise SystemExit(f"A measured command ended with {run.returncode}:\n{run.stderr[-3000:]}")
    said = f"{seconds:g} s of speech, {settings}: {run.seconds:.0f} s, {held(run) / MIB:.0f} MiB"
    print(f"{said}, load {load_average():.1f}", file=sys.stderr)
    return {
        **({} if run.killed else json.loads(run.stdout)),
        "killed": run.killed,
        "held": held(run),
        "reclaims": run.reclaims,
        "usage": run.usage,
    }


def held(run: CgroupRun) -> int:
    """The greatest memory that a process of it held: one that is being started is counted with its parent's pages."""
    return max(run.marks.values())


def rtf(answer: dict[str, Any]) -> float:
    """Seconds of work per second of sound."""
    return float(answer["speech_s"] / answer["sound_s"])


def add_speed(report: Report, runs: dict[tuple[int, float], dict[str, Any]], quick: bool) -> None:
    """Adds how fast it speaks, by threads and length of the answer, and where a frame's time goes."""
    longest = max(seconds for _threads, seconds in runs)
    table = report.table(
        "Short prompts, seconds:",
        (
            "threads", "answer", "prompt tokens", "first text", "tokens", "first sound after it", "sound",
            "real-time factor", "CPU",
        ),
    )  # fmt: skip
    frames = report.table(
        "Where the work for a frame goes, ms of wall-clock time:",
        ("threads", "sound", "answer", "talker", "code predictor", "vocoder", "else", "sum"),
    )
    summary = report.summary = Table(
        "Second answers, a picture and 10 seconds of sound in the prompt:",
        (
            "threads", "sound, s", "first sound after the first text, s", "real-time factor", "a frame, ms: talker",
            "code predictor", "vocoder", "else", "sum",
        ),
    )  # fmt: skip
    for (threads, seconds), run in runs.items():
        last = run["answers"][-1]
        first = (str(threads), f"{last['sound_s']:.2f}", f"{last['first_sound_s']:.2f}", f"{rtf(last):.2f}")
        summary.rows.append((*first, *by_frame(last, run["frame_s"])))
        for number, answer in enumerate(run["answers"], 1):
            table.rows.append(
                (
                    str(threads), str(number), str(answer["prompt_tokens"]), f"{answer['first_text_s']:.1f}",
                    str(answer["tokens"]), f"{answer['first_sound_s']:.2f}", f"{answer['sound_s']:.2f}",
                    f"{rtf(answer):.2f}", f"{answer['cpu_s']:.1f}",
                )
            )  # fmt: skip
            sound = f"{answer['sound_s']:.2f}"
            frames.rows.append((str(threads), sound, str(number), *by_frame(answer, run["frame_s"])))
        report.values[f"{threads} threads, {seconds:g} s"] = run
        if quick:
            continue
        name, most = f"{threads} threads, {seconds:g} s of speech", MOST_RTF.get(threads)
        if most is not None and seconds == longest:
            report.require(f"{name}: real-time factor at most {most}", f"{rtf(last):.2f}", rtf(last) <= most)
        if threads not in MOST_RTF or threads < max(MOST_RTF):
            continue
        wait = max(answer["first_sound_s"] for answer in run["answers"])
        report.require(
            f"{name}: first sound at most {MOST_WAIT_S} s after the first token of text, in each answer",
            f"{wait:.2f} s",
            wait <= MOST_WAIT_S,
        )


def by_frame(answer: dict[str, Any], frame_s: float) -> list[str]:
    """Milliseconds of each part per frame, of the rest, and all."""
    frames = answer["sound_s"] / frame_s
    parts = [1e3 * answer["parts_s"].get(part, 0.0) / frames for part in (TALKER, PREDICTOR, VOCODER)]
    whole = 1e3 * answer["speech_s"] / frames
    return [f"{value:.1f}" if value else "not seen" for value in parts] + [f"{whole - sum(parts):.1f}", f"{whole:.1f}"]


def lent(plan: dict[str, Any]) -> str:
    """What experts lend of their memory to parts that only some phases need, as a plan has it."""
    uses = [f"{nbytes / MIB:.0f} while {use}" for use, nbytes in plan.get("lent", {}).items()]
    return f" (of which they lend {', '.join(uses)})" if uses else ""


def predicted(plan: dict[str, Any]) -> int:
    """Bytes that a plan has for every phase, experts included, its margin left out: what they lend is taken."""
    return sum(int(plan[name]) for name in ("process", "kv_cache", "activations", "io_buffers", "libraries", "arena"))


def add_memory(report: Report, run: dict[str, Any], limit: int, quick: bool) -> None:
    """Adds what each phase held of the budget, with a prompt that fills the context."""
    name = f"a prompt that fills the context, {limit / GIB:g} GiB"
    report.values["memory"] = run
    report.require(f"{name}: not killed", "killed" if run["killed"] else "not killed", not run["killed"])
    report.require(f"{name}: within the budget", f"{run['held'] / MIB:.0f} MiB", run["held"] <= limit)
    if run["killed"]:
        return
    answer = run["answers"][0]
    table = report.table(
        f"Memory by phase, budget {limit / GIB:g} GiB, two prompts of {answer['prompt_tokens']} tokens, "
        f"{run['plan']['arena'] / MIB:.0f} MiB for experts{lent(run['plan'])}, "
        f"encoders in {', '.join(run['encoders'])}; the cgroup reached "
        f"its limit {run['reclaims']} times and gave pages of files back:",
        ("phase", "predicted MiB", "measured MiB", "predicted / measured"),
    )
    for phase in PHASES[1:]:
        measured = max((peaks.get(phase, 0) for peaks in run["peaks"]), default=0)
        if not measured:
            continue
        planned = predicted(run["plan"])
        ratio = planned / measured
        table.rows.append((phase, f"{planned / MIB:.0f}", f"{measured / MIB:.0f}", f"{ratio:.2f}"))
        if not quick:
            what = f"memory planned for the phase of {phase}: at least what is held, and at most {MOST_OVER} of it"
            report.require(what, f"{ratio:.2f}", 1 <= ratio <= MOST_OVER)
    report.require(f"{name}: encoders as in the checkpoint", ", ".join(run["encoders"]), run["encoders"] == ["native"])
    if not quick:
        report.require(
            f"{name}: at least {LEAST_EXPERTS / GIB:g} GiB for experts",
            f"{run['plan']['arena'] / GIB:.2f} GiB",
            run["plan"]["arena"] >= LEAST_EXPERTS,
        )


def add_reads(report: Report, runs: dict[str, dict[str, Any]]) -> None:
    """Adds how often experts were read, and what a profile saves."""
    table = report.table(
        "Experts read, by answer, and what a profile saves:",
        (
            "run", "answer", "talker's experts read", "reads of them", "read again", "thinker's experts read",
            "read again", "first text, s", "first sound after it, s",
        ),
    )  # fmt: skip
    for name, run in runs.items():
        for number, answer in enumerate(run["answers"], 1):
            talkers, talker_reads = answer["reads"]["talker"]
            thinkers, thinker_reads = answer["reads"]["thinker"]
            table.rows.append(
                (
                    name, str(number), str(talkers), str(talker_reads), str(talker_reads - talkers), str(thinkers),
                    str(thinker_reads - thinkers), f"{answer['first_text_s']:.1f}", f"{answer['first_sound_s']:.2f}",
                )
            )  # fmt: skip
        report.values[name] = run


def require_once(report: Report, name: str, run: dict[str, Any]) -> None:
    """Adds whether a talker's expert was read twice for one answer."""
    again = sum(reads - experts for experts, reads in (one["reads"]["talker"] for one in run["answers"]))
    report.require(f"{name}: no expert of the talker read twice for an answer", f"{again} reads again", not again)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--shape", choices=OMNI_SHAPES, default=RELEASED, help="of the model (%(default)s)")
    parser.add_argument("--memory", type=float, default=8.0, metavar="GIB", help="budget and limit (%(default)s)")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens of text (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[4.0, 10.0], help="of speech; the longest is judged (%(default)s)"
    )
    parser.add_argument("--no-profile", action="store_true", help="leave out what a profile saves")
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    limit, pictures = int(given.memory * GIB), {"width": 640, "height": 480, "seconds": 10.0}
    if given.quick:
        given.shape, given.context, given.threads, given.seconds, given.new_tokens = SMALL, 512, [1], [1.0], 6
        limit, pictures = GIB, {"width": 64, "height": 64, "seconds": 1.0}
    wait_until_quiet(given.wait_quiet)
    report = Report("speech", "Speech", work=given.work_dir, quick=given.quick)
    files = Files(given.work_dir, given.shape)
    if not files.store.exists():
        files.make("store")
    prompt = make_prompt(given.work_dir, **pictures)
    walk = thinker(OMNI_SHAPES[given.shape]()).walk

    def words(first: int, count: int) -> str:
        return "".join(map(text_of, walk.tokens(first, count)))

    short = [words(number * 1000, 24) for number in range(2)]
    long = [words(5000 + 1000 * number, given.context - (700 if not given.quick else 400)) for number in range(2)]
    try:
        runs = {
            (threads, seconds): spoken(files.store, prompt, short, given, limit, seconds=seconds, threads=threads)
            for threads in given.threads
            for seconds in given.seconds
        }
        add_speed(report, runs, given.quick)
        most: dict[str, Any] = {"seconds": max(given.seconds), "threads": max(given.threads)}
        add_memory(report, spoken(files.store, prompt, long, given, limit, **most), limit, given.quick)
        plain = "without a profile"
        compared = {plain: runs[most["threads"], most["seconds"]]}
        if not given.no_profile:
            profile = given.work_dir / "speech-profile.db"
            profile.unlink(missing_ok=True)
            other = [words(9000 + 1000 * number, 24) for number in range(2)]
            spoken(files.store, prompt, other, given, limit, **most, record_profile=profile)
            warmed: dict[str, Any] = {**most, "profile": profile}
            compared["warmed by a profile"] = spoken(files.store, prompt, short, given, limit, **warmed)
            compared["and a quarter pinned"] = spoken(files.store, prompt, short, given, limit, **warmed, pin="25%")
        add_reads(report, compared)
        require_once(report, plain, compared[plain])
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
