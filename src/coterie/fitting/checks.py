"""What is refused before long work begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from coterie.calibration import Calibration
from coterie.engine import open_source
from coterie.errors import DiskSpaceError, UsageError
from coterie.evaluate.overlap import shared
from coterie.evaluate.questions import DEFAULT_ANSWER_TOKENS, read_questions
from coterie.evaluate.texts import encode
from coterie.files.nearest import nearest_directory
from coterie.files.text import read_text
from coterie.fitting.costs import StagePlan
from coterie.fitting.held_out import Division, digest
from coterie.fitting.making import Source
from coterie.generation.processors import Processors
from coterie.hf.modalities import served_modalities
from coterie.profiles import Usage, error_weights
from coterie.spec import format_bytes
from coterie.spec.encodings import SCHEME_FORMATS, schemes_named
from coterie.survey import Material
from coterie.survey.material import MODALITY_OF

_OPTION_OF = {"image": "--images PATH", "audio": "--speech PATH"}

_SAME_SHARE = 0.02
"""Of a text, what it may have in common with what was calibrated on: phrases that everybody writes."""

_RESERVE = 64 << 20


def check_source(source: Source) -> None:
    """Refuses a model of which no better store can be made.

    Raises:
        UsageError: If it lacks experts, or those that it has have lost something already.
    """
    origin = source.origin
    total = sum(bank.bank.num_experts for bank in origin.model.banks.values())
    keys = origin.keys()
    if source.is_store and len(keys) < total:
        raise UsageError(
            f"{source.model} is a partial store: it has {len(keys)} of {total} experts.",
            advice="Fit the checkpoint, or a store that has them all.",
        )
    if any(name in SCHEME_FORMATS for key in keys for name in schemes_named(origin.scheme(key))):
        raise UsageError(
            f"{source.model} is lossy already, and what it has lost would be taken for the model's own.",
            advice="Fit the checkpoint, or a store that is still native.",
        )


def check_full(source: Source) -> None:
    """Refuses to compare with a model that has other tokens.

    Raises:
        UsageError: If it is one, or lacks experts.
        CoterieError: If it cannot be opened.
    """
    request = source.request
    if request.against is None:
        return
    full = open_source(request.against, component=request.component, offline=request.offline)
    if not full.complete:
        raise UsageError(
            f"{full.name} lacks experts: what stores are compared with is the full model.",
            advice="Name the checkpoint, or a store that has them all: --against.",
        )
    ours, theirs = (
        Processors(directory).tokenizer.get_vocab() for directory in (source.origin.directory, full.directory)
    )
    if ours != theirs:
        raise UsageError(
            f"{source.model} and {full.name} have different tokenizers: they cannot be compared.",
            advice="Compare with the model that it was made from.",
        )


def check_profile(source: Source) -> str:
    """Refuses a profile by which bits cannot be allocated; gives the fingerprint of what decides in it.

    Returns:
        Hex digits; nothing if no profile was given.

    Raises:
        UsageError: If it lacks a domain, a modality or a layer.
        ProfileError: If it cannot be used, or is another model's.
    """
    request = source.request
    if request.profile is None:
        return ""
    usage = Usage.open(request.profile, source.origin.identity)
    found = error_weights(
        usage,
        list(source.origin.model.banks),
        _served(source),
        domains=request.domains,
        modalities=request.modalities,
    )
    return found.fingerprint


def _served(source: Source) -> dict[str, frozenset[str]]:
    """Component with experts → the modalities that it serves."""
    components = {key.component for key in source.origin.model.banks}
    return {name: served_modalities(source.origin.model.config, name) for name in components}


def check_kinds(source: Source, material: Iterable[Material]) -> None:
    """Refuses domains that are not known, and kinds of tokens of which nothing would be recorded.

    Raises:
        UsageError: If a domain or a modality is lacking.
    """
    request, required = source.request, _served(source)
    if request.profile is not None and request.keep is None:
        return
    files = list(material)
    for domain in request.domains:
        if domain not in (known := sorted({one.domain for one in files})):
            raise UsageError.unknown("domain", domain, known)
    recorded = {MODALITY_OF[one.kind] for one in files}
    for modality in request.modalities:
        if modality not in recorded:
            raise UsageError.unknown("modality of what is to be recorded", modality, recorded)
    if "talker" in required:
        raise UsageError(
            "The talker's experts are used while the model speaks, and texts say nothing of that.",
            advice="Fit a part: --component thinker. Or prune it (coterie prune), record the pruned store while it "
            "speaks, and fit that with --profile."
            if request.keep is not None
            else "Give a profile that was recorded while it spoke (--profile), or fit a part: --component thinker.",
        )
    lacking = sorted({one for names in required.values() for one in names} - recorded)
    if lacking and not request.modalities:
        options = [_OPTION_OF[one] for one in lacking if one in _OPTION_OF]
        raise UsageError(
            f"{source.model} serves {', '.join(lacking)} beside text, and nothing of that would be recorded: experts "
            "that only these need would get the fewest bits.",
            advice=f"Add {' and '.join(options)}; or --modality text, to let the others get worse."
            if options or request.keep is not None
            else "Give a profile that has them: --profile.",
            lacking=lacking,
        )


def check_apart(source: Source, division: Division) -> None:
    """Refuses to score what is calibrated on, and questions that cannot be asked.

    Raises:
        UsageError: If a text, a sound or a picture is on both sides; names it.
        InputError: If a file cannot be used.
    """
    request = source.request
    processors = Processors(source.origin.directory)
    media = {digest(one.path): one.path for one in division.decides if one.kind != "text"}
    for file in request.exact_match:
        for question in read_questions(file, processors, new_tokens=DEFAULT_ANSWER_TOKENS):
            for path in (question.audio, question.image):
                if path is not None and digest(path) in media:
                    raise UsageError(
                        f"Line {question.line} of {file} asks about {path}, which is also calibrated on: its answer "
                        "would flatter the store.",
                        advice="Ask about others, or leave it out of --speech and --images.",
                        path=path,
                    )
    if division.held_out:
        return
    calibration = Calibration(material=division.decides, tokens=request.calibration_tokens)
    sequences = calibration.of(source.model, revision=request.revision, offline=request.offline).facts().sequences
    for domain, path in division.scored.items():
        text = encode(processors.tokenizer, read_text(path, filled=True), name=domain, limit=request.limit)
        share = shared(text.ids, sequences)
        if share >= _SAME_SHARE:
            raise UsageError(
                f"About {share:.0%} of the text of {domain} that is to be scored is also calibrated on: its figures "
                "would flatter the store.",
                advice="Score other documents, or leave --text out: then documents are held out.",
                domain=domain,
                share=share,
            )


def check_disk(work: Path, stages: Iterable[StagePlan]) -> None:
    """Refuses work that does not fit on its disk.

    Args:
        work: The directory where it goes; need not exist.
        stages: What is still to be done.

    Raises:
        DiskSpaceError: With facts ``path``, ``needed`` and ``free`` in bytes.
    """
    place = nearest_directory(work)
    needed = sum(one.disk_nbytes for one in stages if not one.finished)
    free = shutil.disk_usage(place).free + _taken(work)
    if needed and needed + _RESERVE > free:
        listed = ", ".join(f"{one.name} {format_bytes(one.disk_nbytes)}" for one in stages if one.disk_nbytes)
        raise DiskSpaceError(
            f"The work needs {format_bytes(needed + _RESERVE)} on the disk of {place} ({listed}); {format_bytes(free)} "
            "are free.",
            advice="Free space, choose another disk for the store, or make no uniform store beside it: --no-compare.",
            path=place,
            needed=needed + _RESERVE,
            free=free,
        )


def _taken(work: Path) -> int:
    """Bytes of what unfinished stages have made already."""
    if not work.is_dir():
        return 0
    return sum(path.lstat().st_blocks * 512 for path in work.rglob("*") if path.is_file() and not path.is_symlink())
