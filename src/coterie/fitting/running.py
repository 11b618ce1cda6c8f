"""Runs the stages of a fit, one after the other, each by its own public function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from coterie.calibration import Calibration
from coterie.cluster.workers import RemoteModel
from coterie.errors import CoterieError, MemoryBudgetError, OutputError
from coterie.evaluate.evaluation import EvaluationProgress
from coterie.extraction import Allocation, Progress
from coterie.files.plain_values import to_plain
from coterie.files.replacing import replacing
from coterie.fitting.card import write_card
from coterie.fitting.checks import check_disk
from coterie.fitting.commands import advice, commands, verdict_of
from coterie.fitting.costs import stage_plans, wanted_stages
from coterie.fitting.making import make_allocated, make_uniform
from coterie.fitting.measuring import (
    Journals,
    evaluate_store,
    measure_speed,
    scored_in_order,
    side_by_side,
    verify_store,
)
from coterie.fitting.predicting import Made, expected_ratios
from coterie.fitting.preparing import Prepared
from coterie.fitting.pruning import make_pruned
from coterie.fitting.report import (
    Allocated,
    Evaluated,
    Fit,
    ProfileFacts,
    Pruned,
    Sizing,
    SpeedFacts,
    Uniform,
    Verified,
)
from coterie.fitting.request import FitRequest
from coterie.fitting.work import TEXTS, WorkFolder, work_path
from coterie.generation.opened import OpenModel
from coterie.origins.side_files import side_files
from coterie.planner import Machine
from coterie.profiles import Usage
from coterie.spec.opening import Opening
from coterie.store import is_store, refresh_files
from coterie.store.names import CARD, FIT_FACTS
from coterie.survey import WorkDone, survey

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProgress:
    """How far a fit is.

    Attributes:
        stage: Name of the stage that is under way.
        number: Its number, from 1.
        stages: Stages in all.
        what: What it is doing, where it does several things.
        done: How much of that is done; None where that is not known.
        total: Of how much.
        unit: ``bytes`` or ``tokens``.
    """

    stage: str
    number: int
    stages: int
    what: str = ""
    done: int | None = None
    total: int | None = None
    unit: str = ""


FitCallback = Callable[[FitProgress], None]
"""Told when a stage begins, and how far it is."""


def fit(
    model: str | Path,
    store: str | Path,
    request: FitRequest,
    *,
    machine: Machine | None = None,
    restart: bool = False,
    keep_work: bool = False,
    progress: FitCallback | None = None,
) -> Fit:
    """Makes the best store of a model for a memory budget, measures what it loses, and writes that on a card.

    A profile is recorded, experts are pruned by it if that is asked for, bits are allocated, codes are calibrated, the
    store is verified, and it is evaluated beside a uniform store of the same size, on text that was held out. Until all
    of that is finished, it is in ``STORE.work`` beside the output; interrupted at any moment, the same call goes on
    where it was.

    Args:
        model: A checkpoint directory, a Hub id, ``bundled``, or a store with all experts that has lost nothing.
        store: The new store's directory.
        request: What is asked for.
        machine: What was measured of the machine; default: this one is measured where speed matters.
        restart: Discard unfinished stages of another request with the same output.
        keep_work: Leave ``STORE.work`` where it is: the profile, the texts, the logits, the uniform store.
        progress: Told how far it is.

    Raises:
        MemoryBudgetError: If the store, or the full model that has to be run for it, needs more memory; says how much.
        UsageError: If a value cannot be, a domain or modality is not known, a text is calibrated on and scored, the
            model fits as it is, or the directory has another store.
        ProfileError: If the profile cannot be used, or is another model's.
        DiskSpaceError: If the work does not fit on its disk; nothing is written then.
        StoreBusyError: If another process works on the same output.
        CoterieError: As the stages do.
    """
    prepared = Prepared(model, store, request)
    found = prepared.finished()
    if found is not None:
        if not keep_work:
            prepared.clear()
        return found
    prepared.check()
    work = WorkFolder(work_path(store), prepared.settings, restart=restart)
    try:
        with work.locked():
            run = _Run(prepared, work, machine, progress or _nobody)
    except CoterieError:
        if work.is_new:
            work.clear()  # refused before anything was made
        raise
    with work.locked():
        made = run.finish()
    if not keep_work:
        work.clear()
    return made


def _nobody(progress: FitProgress) -> None:
    """Is told where nobody wants to know."""


class _Run:
    """The stages, each done once."""

    def __init__(self, prepared: Prepared, work: WorkFolder, machine: Machine | None, tell: FitCallback) -> None:
        self._prepared = prepared
        self._source = prepared.source
        self._pruned: Path | None = None
        self._request = prepared.request
        self._work = work
        self._machine = machine
        self._tell = tell
        self._stages = wanted_stages(prepared.source)
        self._now = FitProgress(stage="", number=0, stages=len(self._stages))
        self._division = prepared.divide(work.path / TEXTS)
        finished = WorkFolder.finished_in(work.path, prepared.settings)
        sizing = prepared.sizer.choose(bits=self._request.bits, domains=self._request.domains, measure=False)
        check_disk(work.path, stage_plans(self._source, sizing, prepared.kept, self._division.scored, finished))

    @property
    def _store(self) -> Path:
        return self._work.path / "store"

    @property
    def _uniform(self) -> Path:
        return self._work.path / "uniform"

    @property
    def _profile(self) -> str | Path:
        """What is known of the model as it was."""
        return self._work.path / "profile.db" if self._request.profile is None else self._request.profile

    @property
    def _deciding(self) -> str | Path:
        """What bits are allocated by: what is known of the model that the store is made of."""
        return self._profile if self._pruned is None else self._work.path / "pruned.db"

    def finish(self) -> Fit:
        """Does what is left."""
        request = self._request
        if request.profile is None:
            profile = self._stage("profile", ProfileFacts, self._record, there=Path(self._profile).exists)
        else:
            profile = self._facts_of_profile(str(request.profile))
        pruned = None
        if request.keep is not None:
            store, before = self._work.path / "pruned", profile
            pruned = self._stage("prune", Pruned, lambda: self._prune(store, before), there=lambda: is_store(store))
            self._source, self._pruned = self._source.pruned(store), store
            profile = self._stage("profile-pruned", ProfileFacts, self._record, there=Path(self._deciding).exists)
        sizing = self._stage("plan", Sizing, self._plan)
        made = self._stage("store", Allocated, lambda: self._make(sizing), there=lambda: is_store(self._store))
        verified = self._stage("verify", Verified, lambda: verify_store(self._source, self._store, self._bytes))
        uniform = None
        if request.compare:
            uniform = self._stage(
                "uniform", Uniform, lambda: self._make_uniform(made), there=lambda: is_store(self._uniform)
            )
        evaluated = self._stage("evaluate", Evaluated, lambda: self._evaluate(made, uniform))
        speed, note = None, ""
        if request.measure:
            try:
                speed = self._stage("speed", SpeedFacts, lambda: self._measure(made))
            except MemoryBudgetError as error:
                note = f"Speed was not measured: {error.message}"
        verdict = verdict_of(evaluated)
        found = Fit(
            model=self._prepared.name,
            revision=self._prepared.source.origin.model.revision,
            store=self._prepared.root.name,
            settings=self._prepared.settings,
            memory=request.memory_nbytes,
            context=self._prepared.sizer.context,
            domains=request.domains,
            sizing=sizing,
            profile=profile,
            pruned=pruned,
            made=made,
            uniform=uniform,
            verified=verified,
            evaluated=evaluated,
            speed=speed,
            speed_note=note,
            verdict=verdict,
            advice=advice(self._prepared, verdict, uniform),
            commands=commands(self._prepared, made),
            versions={name: version(name) for name in ("coterie", "torch", "transformers")},
        )
        self._hand_over(found)
        return found

    def _stage(self, name: str, kind: type[T], do: Callable[[], T], there: Callable[[], bool] = lambda: True) -> T:
        self._now = FitProgress(stage=name, number=self._stages.index(name) + 1, stages=len(self._stages))
        self._tell(self._now)
        found = self._work.finished(name, kind) if there() else None
        if found is None:
            found = do()
            self._work.finish(name, to_plain(asdict(found)))  # type: ignore[call-overload]
        return found

    # --- stages -------------------------------------------------------------------------------------------------

    def _record(self) -> ProfileFacts:
        request, material = self._request, self._division.decides
        is_made_here = self._pruned is not None  # a store of what is wanted, and nothing else
        opening = Opening(
            memory=request.work_nbytes,
            component=None if is_made_here else request.component,
            revision=None if is_made_here else request.revision,
            offline=request.offline,
            threads=request.threads,
        )
        done, work = 0, WorkDone(material)
        total = sum(one.work for one in material)

        def tell(nbytes: int) -> None:
            nonlocal done
            done += work.add(nbytes)
            self._tell(self._at("recording", done, total, "tokens"))

        with self._reading(opening) as model:
            survey(model, self._deciding, material, progress=tell)
        return self._facts_of_profile(None)

    @contextmanager
    def _reading(self, opening: Opening) -> Iterator[OpenModel | RemoteModel]:
        """The model that is run over the material: here, or by the workers of a cluster."""
        path, ray = str(self._source.model), self._request.ray
        if ray is not None:
            yield RemoteModel(path=path, opening=opening, address=ray)
            return
        opened = OpenModel.open(path, opening)
        try:
            yield opened
        finally:
            opened.runtime.close()

    def _facts_of_profile(self, named: str | None) -> ProfileFacts:
        usage = Usage.open(self._deciding, self._source.origin.identity)
        tokens: dict[str, int] = {}
        for row, group in enumerate(usage.groups):
            count = max((int(table.tokens[row]) for table in usage.banks.values()), default=0)
            name = f"{group.modality} of {group.domain}"
            tokens[name] = tokens.get(name, 0) + count
        return ProfileFacts(profile=named, identity=usage.identity, tokens=tokens)

    def _plan(self) -> Sizing:
        request = self._request
        return self._prepared.sizer.choose(
            bits=request.bits,
            domains=request.domains,
            profile=self._deciding,
            pruned=self._pruned,
            machine=self._machine,
            measure=request.measure,
        )

    def _prune(self, store: Path, profile: ProfileFacts) -> Pruned:
        return make_pruned(self._source, store, self._profile, profile, self._bytes)

    def _calibration(self) -> Calibration:
        request = self._request
        return Calibration(
            material=self._division.decides,
            tokens=request.calibration_tokens,
            memory=request.work_nbytes,
            ray=request.ray,
        )

    def _make(self, sizing: Sizing) -> Allocated:
        request = self._request
        allocation = Allocation(
            bits=sizing.bits,
            expert_bytes=sizing.expert_bytes,
            profile=self._deciding,
            domains=request.domains,
            modalities=request.modalities,
        )
        return make_allocated(self._source, self._store, allocation, self._calibration(), self._bytes)

    def _make_uniform(self, made: Allocated) -> Uniform:
        return make_uniform(self._source, self._uniform, made.allocation, self._calibration(), self._bytes)

    def _evaluate(self, made: Allocated, uniform: Uniform | None) -> Evaluated:
        texts, media, path = self._division.scored, self._division.media, self._work.path
        scored = scored_in_order(texts, media)
        journals = Journals.in_folder(path)

        def evaluation(store: Path, journal: Path, what: str, *, partial: bool) -> Any:
            def tell(found: EvaluationProgress) -> None:
                self._tell(self._at(what, found.done, found.total, "tokens"))

            return evaluate_store(
                self._source,
                store,
                texts,
                media,
                missing="mask" if partial else None,
                kept=path / "logits",
                journal=journal,
                progress=tell,
            )

        found = evaluation(self._store, journals.store, "the store", partial=bool(made.allocation.facts.left_out))
        other, expected = None, {}
        if uniform is not None:
            whole = self._source.base or self._source
            expected = expected_ratios(
                Made(store=self._store, origin=self._source.origin, profile=self._deciding),
                Made(store=self._uniform, origin=whole.origin, profile=self._profile),
                scored,
            )
            other = evaluation(self._uniform, journals.uniform, "the uniform store", partial=False)
        pruned = None
        if self._pruned is not None:
            pruned = evaluation(self._pruned, journals.pruned, "the pruned model", partial=False)
        return side_by_side(self._request, scored, found, other, journals, expected, pruned)

    def _measure(self, made: Allocated) -> SpeedFacts:
        return measure_speed(
            self._source,
            self._store,
            context=self._prepared.sizer.context,
            missing="mask" if made.allocation.facts.left_out else None,
            machine=self._machine,
        )

    # --- the end ------------------------------------------------------------------------------------------------

    def _hand_over(self, found: Fit) -> None:
        """Puts the card into the store, and the store into its place."""
        origin = self._prepared.source.origin
        card = side_files(origin.directory).get(CARD)
        original = None if card is None else card.read_text(encoding="utf-8", errors="replace")
        hub_id = origin.model.name if origin.model.revision is not None else None
        contents = {
            CARD: write_card(found, original, hub_id=hub_id),
            FIT_FACTS: json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n",
        }
        for name, content in contents.items():
            with replacing(self._store / name) as partial:
                partial.write_text(content, encoding="utf-8")
        refresh_files(self._store, side_files(self._store))
        root = self._prepared.root
        try:
            if root.exists():
                root.rmdir()  # an empty one
            self._store.rename(root)
        except OSError as error:
            raise OutputError(
                f"The finished store cannot be moved to {root}: {error.strerror or error}.",
                advice="Give the same command again, or move it yourself.",
                path=root,
            ) from error

    def _bytes(self, progress: Progress) -> None:
        self._tell(self._at(progress.stage, progress.done, progress.total, "bytes"))

    def _at(self, what: str, done: int, total: int, unit: str) -> FitProgress:
        now = self._now
        return FitProgress(
            stage=now.stage, number=now.number, stages=now.stages, what=what, done=done, total=total, unit=unit
        )
