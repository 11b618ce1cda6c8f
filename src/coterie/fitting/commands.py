"""What a card says to do: how to make the same, what to type next, and what to use instead where nothing was gained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from coterie.calibration.defaults import FOLDER
from coterie.fitting.preparing import Prepared
from coterie.fitting.report import Allocated, Evaluated, Uniform, Verdict
from coterie.fitting.request import FitRequest
from coterie.origins.selection import Selection


def verdict_of(evaluated: Evaluated) -> Verdict:
    """Whether the store is nearer to the full model than the uniform one."""
    row = next(row for row in evaluated.figures if row.domain == evaluated.decisive)
    if row.beside is None:
        return "not compared"
    nearer = row.beside.nearer
    return "open" if nearer is None else "gain" if nearer else "no gain"


def advice(prepared: Prepared, verdict: Verdict, uniform: Uniform | None) -> str:
    """What to use instead of a store that is no better than a uniform one; else empty."""
    if verdict in ("gain", "not compared") or uniform is None:
        return ""
    line = _line(
        "quantize",
        [str(prepared.model), "STORE"],
        [("--scheme", uniform.nearest), *_material(prepared.request, "--calibrate")],
    )
    if verdict == "open":
        return f"Score more text to be sure (`--text`, `--limit`). A uniform store would be simpler: `{line}`."
    if prepared.request.keep is not None:
        return (
            "Prune fewer experts, or none: leave `--keep` out. A uniform store of the whole model would be nearer to "
            f"it: `{line}`."
        )
    return f"Use a uniform store instead: `{line}`. Or fit with a profile of more text, or with other bits (`--bits`)."


def commands(prepared: Prepared, made: Allocated) -> tuple[str, ...]:
    """How to make the same, and to verify and use it."""
    request, model, store = prepared.request, str(prepared.model), prepared.root.name
    missing = "mask" if made.allocation.facts.left_out else None
    whole: list[tuple[str, object]] = [
        ("--memory", request.memory),
        ("--context", request.context),
        ("--for", ",".join(request.domains) or None),
        ("--bits", request.bits),
        ("--keep", request.keep),
        ("--by", request.by),
        ("--ranking", request.ranking),
        ("--profile", request.profile),
        *_material(request, None),
        *(("--modality", name) for name in request.modalities),
        *(("--text", f"{one.domain}={one.path}") for one in request.texts),
        *(("--exact-match", path) for path in request.exact_match),
        ("--limit", request.limit),
        ("--calibration-tokens", request.calibration_tokens),
        ("--against", request.against),
        ("--component", request.component),
        ("--revision", request.revision),
        ("--dense-scheme", request.dense_scheme),
    ]
    again = request.keep is not None and Selection.read(prepared.source.origin.directory) is not None
    against = [] if prepared.source.is_store or again else [("--against", model)]
    running = [("--memory", request.memory), ("--max-context", request.context), ("--missing", missing)]
    return (
        _line("fit", [model, "-o", store], whole),
        _line("verify", [store], against),
        _line(
            "evaluate", [store], [("--against", request.against or model), ("--text", "TEXT"), ("--missing", missing)]
        ),
        _line("chat", [store], running),
    )


def _material(request: FitRequest, default: str | None) -> list[tuple[str, object]]:
    """The options that name what is calibrated on.

    Args:
        request: What was asked for.
        default: The option that stands for the texts that come with Coterie; None where it need not be said.
    """
    own = [one for one in request.material if not one.path.is_relative_to(FOLDER)]
    said: list[tuple[str, object]] = []
    if len(own) < len(request.material) and (own or default is not None):
        said.append(("--calibrate", "default"))
    for one in own:
        said.append(("--calibrate" if one.kind == "text" else f"--{one.kind}", f"{one.domain}={one.path}"))
    return said


def _line(command: str, arguments: Sequence[str], options: Sequence[tuple[str, object]]) -> str:
    words = ["coterie", command, *arguments]
    for name, value in options:
        if value is not None:
            words += [name, str(value)]
    return shlex.join(words)
