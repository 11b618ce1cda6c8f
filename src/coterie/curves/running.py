"""Measures the points of a curve, one after the other, and searches."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cluster.spreading import one_connection
from coterie.curves.choosing import Chosen, ExpertRanking, kept_gate_mass
from coterie.curves.measuring import Task, check_subject, clear, forget_windows, measure_point, reference_directory
from coterie.curves.points import Curve, CurvePoint, SmallestSet
from coterie.curves.record import PointRecord
from coterie.curves.search import as_text, find_smallest, shared_experts
from coterie.curves.settings import ChosenBy, CurveAxes, Setting
from coterie.errors import OutputError, UsageError
from coterie.evaluate.evaluation import EvaluationProgress
from coterie.evaluate.headers import versions
from coterie.evaluate.planning import input_tokens, steps, tokenise
from coterie.evaluate.running import check_cluster
from coterie.evaluate.subject import Subject
from coterie.files.text import read_text
from coterie.spec.amount import Amount
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from coterie.profiles import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveProgress:
    """How far a curve is.

    Attributes:
        done: Points that are finished.
        total: Points in all, as far as they are known: a search adds one at a time.
        setting: The point that is under way.
        tokens: How far it is; None before it begins.
    """

    done: int
    total: int
    setting: Setting
    tokens: EvaluationProgress | None


CurveCallback = Callable[[CurveProgress], None]


def curve(
    model: str | Path,
    texts: Mapping[str, str | Path] | Sequence[str | Path],
    axes: CurveAxes | None = None,
    *,
    against: str | Path | None = None,
    profile: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    memory: str | int | None = None,
    expert_memory: str | int | None = None,
    component: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    output: str | Path | None = None,
    reference: str | Path | None = None,
    ray: str | None = None,
    progress: CurveCallback | None = None,
) -> Curve:
    """Measures a model at many settings against the full one: what is saved, and what that costs.

    Experts are left out, and quantised, as they are read: no store of a point is written, unless quantised experts do
    not all fit in memory; then there is one for as long as its point is measured. The full model is run once
    over all texts, once more for each text whose smallest set is searched, and once more token by token where reads are
    counted; its logits are kept until all points that are compared with them are measured.

    Args:
        model: A store with all experts, a checkpoint directory, a Hub id, or ``"bundled"``. Of a whole omni model its
            thinker is used.
        texts: UTF-8 files by name, or files that are named by their path. With ``axes.smallest`` the names are domains
            of the profile. They should not be the texts that the profile was recorded of.
        axes: What is varied; default: coverage of 28, 60 and 100 %.
        against: The full model; default: ``model``.
        profile: The model's profile: a file, or a PostgreSQL URL.
        context: Input tokens of a window; default: 512, or what the models were made for if that is less.
        stride: Predictions of a window; default: as many as inputs.
        limit: The most predictions of each text.
        memory: Ceiling for the whole process.
        expert_memory: Size of the arena of experts, as for :func:`coterie.load`. It decides what is read on the axis
            ``drop_cold``.
        component: As for :func:`coterie.load`.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        threads: As for :func:`coterie.load`.
        output: A file next to which finished points are kept, as ``NAME.points.jsonl``: the same call goes on with
            them, and a call with more points measures only these. The file itself is the caller's to write.
        reference: A directory that keeps the logits of the full model for later curves of the same texts.
        ray: Address of a Ray cluster, such as ``"10.0.0.1:6379"``, ``"auto"`` or ``"local"``: its workers share the
            texts of each point, each within ``memory``. The figures are those of this process, to the last bit. Not
            with the axis ``drop_cold``.
        progress: Told after every window.

    Raises:
        UsageError: If a value cannot be; if a layer would have fewer experts than a token uses; if the profile does not
            know a domain; if a bound is not reached with all experts; or if the model is a partial store.
        InputError: If a text cannot be used.
        ProfileError: If the profile cannot be used, or is another model's.
        CoterieError: As evaluating a model and opening it do.
    """
    opening = Opening(
        memory=memory,
        expert_memory=expert_memory,
        component=component,
        revision=revision,
        offline=offline,
        threads=threads,
    )
    return curve_opening(
        model,
        texts,
        axes or CurveAxes(),
        opening,
        against=against,
        profile=profile,
        context=context,
        stride=stride,
        limit=limit,
        output=output,
        reference=reference,
        ray=ray,
        progress=progress,
    )


def curve_opening(
    model: str | Path,
    texts: Mapping[str, str | Path] | Sequence[str | Path],
    axes: CurveAxes,
    opening: Opening,
    *,
    against: str | Path | None = None,
    profile: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    reference: str | Path | None = None,
    ray: str | None = None,
    progress: CurveCallback | None = None,
) -> Curve:
    """:func:`curve`, told how the models are opened in one piece."""
    opening.check()
    wanted = axes.checked(profile=profile is not None)
    if ray is not None:
        check_cluster(opening, in_steps=bool(wanted.drop_cold))
    named = _named(texts)
    if opening.revision is not None:
        # What is compared with it is of the same revision.
        model = Subject(path=model, opening=opening).source.directory
        opening = replace(opening, revision=None)
    with _work(output) as work:
        task = Task(
            model=model,
            against=model if against is None else against,
            texts=named,
            opening=opening,
            context=context,
            stride=stride,
            limit=limit,
            work=work,
            reference=None if reference is None else Path(reference),
            ray=ray,
        )
        run = _Run(task, wanted, profile, None if output is None else points_path(output), progress)
        with one_connection(ray):
            return run.finish()


def points_path(output: str | Path) -> Path:
    """Where finished points are kept, for an output."""
    return Path(output).with_suffix(".points.jsonl")


class _Run:
    """The points of a curve, each measured once."""

    def __init__(
        self,
        task: Task,
        axes: CurveAxes,
        profile: str | Path | None,
        record: Path | None,
        progress: CurveCallback | None,
    ) -> None:
        self._task = task
        self._axes = axes
        self._progress = progress
        source = task.subject.source
        if not source.complete:
            raise UsageError(
                f"{source.name} is a partial store: what a curve says of coverage is of all experts.",
                advice="Name the checkpoint, or a store that has them all.",
            )
        self._usage = None if profile is None else _usage(profile, source.identity)
        self._rankings: dict[tuple[ChosenBy, str | None], ExpertRanking] = {}
        self._settings = axes.settings(profile=profile is not None)
        # What cannot be is told before anything is measured.
        self._chosen = {setting: self._experts_of(setting) for setting in self._settings}
        for setting, chosen in self._chosen.items():
            check_subject(task, setting, task.altered(setting, chosen))
        for by in axes.search_by if axes.smallest else ():
            for domain in task.texts:
                self._ranking(by, domain)
        self._inputs = input_tokens(task.subject, task.full, task.context)
        contents = [(name, read_text(path, filled=True)) for name, path in task.texts.items()]
        tokenised = tokenise(task.subject, task.full, contents, task.limit)
        _, self._stride = steps(tokenised, self._inputs, task.stride)
        self._record = PointRecord(record, _header(task, contents, self._inputs, self._stride))
        self._done = 0
        self._total = len(self._settings)

    def finish(self) -> Curve:
        """Measures what is left."""
        points = [self._point(setting, self._chosen[setting]) for setting in self._settings]
        self._let_go(self._settings)
        sets = [self._smallest(domain, by, bound) for domain, by, bound in self._searches()]
        task = self._task
        return Curve(
            model=task.subject.facts,
            against=task.full.facts,
            context=self._inputs,
            stride=self._stride,
            limit=task.limit,
            texts={name: str(path) for name, path in task.texts.items()},
            points=tuple(points),
            smallest=tuple(sets),
            shared=shared_experts(sets, {key: bank.num_experts for key, bank in task.banks.items()}),
        )

    def _searches(self) -> Iterator[tuple[str, ChosenBy, float]]:
        for domain in self._task.texts if self._axes.smallest else ():
            for by in self._axes.search_by:
                # From the loosest bound to the tightest, a search uses the points of the one before.
                for bound in sorted(set(self._axes.smallest), reverse=True):
                    yield domain, by, bound
            self._let_go([Setting(axis="coverage", text=domain)])

    def _smallest(self, domain: str, by: ChosenBy, bound: float) -> SmallestSet:
        ranking = self._ranking(by, domain)
        missing = self._axes.missing[0]

        def measure(count: int) -> CurvePoint:
            setting = Setting(axis="coverage", keep=str(count), scope="model", text=domain)
            self._total += 1
            if count == ranking.total:
                return self._point(setting, None)
            return self._point(replace(setting, by=by, domain=domain, missing=missing), ranking.first(count))

        count, point, tried = find_smallest(ranking, bound, measure)
        chosen = ranking.first(count)
        assert self._usage is not None, "settings are checked before"
        return SmallestSet(
            domain=domain,
            bound=bound,
            by=by,
            missing=missing,
            experts=count,
            total_experts=ranking.total,
            kld=point.kld,
            expert_nbytes=point.expert_nbytes,
            gate_mass=kept_gate_mass(self._usage, chosen, domain),
            chosen=as_text(chosen),
            evaluations=tried,
        )

    def _point(self, setting: Setting, chosen: Chosen | None) -> CurvePoint:
        task = self._task
        subject = task.altered(setting, chosen)
        key = task.key(setting, subject)
        found = self._record.get(key)
        if found is None:
            self._tell(setting, None)
            found = measure_point(task, setting, subject, lambda tokens: self._tell(setting, tokens))
            self._record.add(key, found)
            forget_windows(task, setting, subject)
        self._done += 1
        self._tell(setting, None)
        mass = None
        if chosen is not None and self._usage is not None:
            mass = kept_gate_mass(self._usage, chosen, setting.domain)
        return replace(found, setting=setting, gate_mass=mass)

    def _tell(self, setting: Setting, tokens: EvaluationProgress | None) -> None:
        if self._progress is not None:
            self._progress(CurveProgress(done=self._done, total=self._total, setting=setting, tokens=tokens))

    def _experts_of(self, setting: Setting) -> Chosen | None:
        if setting.by is None or setting.keep is None:
            return None
        return self._ranking(setting.by, setting.domain).take(Amount.parse(setting.keep), setting.scope)

    def _ranking(self, by: ChosenBy, domain: str | None) -> ExpertRanking:
        if (by, domain) not in self._rankings:
            self._rankings[by, domain] = ExpertRanking(self._task.banks, by, self._usage, domain)
        return self._rankings[by, domain]

    def _let_go(self, settings: Sequence[Setting]) -> None:
        """Removes logits that no further point is compared with."""
        if self._task.reference is None:
            for setting in settings:
                shutil.rmtree(reference_directory(self._task, setting), ignore_errors=True)


def _usage(profile: str | Path, identity: str) -> Usage:
    # Imported where it is needed: a curve without a profile shall not pay for a database.
    from coterie.profiles import Usage

    return Usage.open(profile, identity)


def _named(texts: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    if not texts:
        raise UsageError("There is no text to measure with.", advice="Name one or more UTF-8 files.")
    if isinstance(texts, Mapping):
        return {name: Path(path) for name, path in texts.items()}
    named = {str(path): Path(path) for path in texts}
    if len(named) < len(texts):
        raise UsageError("A text is named twice.", advice="Name each once.")
    return named


@contextmanager
def _work(output: str | Path | None) -> Iterator[Path]:
    """A directory that is there until the curve is finished: beside the output, or else until the call ends."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="coterie-curve-") as folder:
            yield Path(folder)
        return
    path = Path(output).with_suffix(".work")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error.strerror or error}.", path=path) from error
    try:
        yield path
        clear(path)
    finally:
        with suppress(OSError):
            path.rmdir()  # what has something in it stays: the same call goes on with it, or it is not ours


def _header(task: Task, contents: Sequence[tuple[str, str]], inputs: int, stride: int) -> dict[str, Any]:
    return {
        "against": task.full.fingerprint,
        "texts": {name: hashlib.sha256(content.encode()).hexdigest() for name, content in contents},
        "context": inputs,
        "stride": stride,
        "limit": task.limit,
        "component": task.opening.component,
        "versions": versions(),
    }
