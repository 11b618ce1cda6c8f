"""What is known, and refused, before anything is made."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from coterie.errors import StoreError, UsageError
from coterie.evaluate.planning import DEFAULT_CONTEXT
from coterie.files.json_text import read_json_object
from coterie.files.naming import check_new_name
from coterie.fitting.checks import check_apart, check_full, check_kinds, check_profile, check_source
from coterie.fitting.costs import FitPlan, stage_plans
from coterie.fitting.held_out import Division, divide
from coterie.fitting.making import Source
from coterie.fitting.pruning import KeptShares
from coterie.fitting.report import Fit, Sizing
from coterie.fitting.request import FitRequest
from coterie.fitting.sizing import Sizer
from coterie.fitting.work import FACTS_LIMITS, WorkFolder, work_path
from coterie.planner import Machine
from coterie.store import is_store
from coterie.store.names import FIT_FACTS
from coterie.survey.answering import media_name


def plan_fit(model: str | Path, store: str | Path, request: FitRequest, *, machine: Machine | None = None) -> FitPlan:
    """Says what :func:`fit` would do, and what each stage would take. Writes nothing and downloads no weights.

    The arguments are those of :func:`fit`, and so are the errors.
    """
    prepared = Prepared(model, store, request)
    sizing = prepared.check(machine=machine)
    path = work_path(store)
    with tempfile.TemporaryDirectory(prefix="coterie-fit-") as folder:
        division = prepared.divide(Path(folder))
        finished = set() if not path.exists() else WorkFolder.finished_in(path, prepared.settings)
        stages = stage_plans(prepared.source, sizing, prepared.kept, division.scored, finished)
        scored = {domain: text.stat().st_size for domain, text in division.scored.items()}
    return FitPlan(
        model=prepared.name,
        store=str(store),
        work=str(path),
        memory=request.memory_nbytes,
        context=prepared.sizer.context,
        sizing=sizing,
        scored=scored,
        scored_media=dict(Counter(media_name(one) for one in division.media)),
        not_scored=division.lacking,
        stages=tuple(stages),
    )


class Prepared:
    """What is known before anything is made."""

    def __init__(self, model: str | Path, store: str | Path, request: FitRequest) -> None:
        check_new_name(store)
        request.check()
        self.model = model
        self.root = Path(store).expanduser().absolute()
        self.request = request
        self.source = Source.open(model, request)
        origin = self.source.origin
        self.name = origin.model.name
        fingerprint = f"{origin.integrity} {origin.made_from}".strip()
        self.settings = request.settings(fingerprint, check_profile(self.source))
        self.kept = KeptShares.of(self.source)
        self.sizer = Sizer(
            model,
            request.memory_nbytes,
            context=request.context,
            component=request.component,
            dense_scheme=request.dense_scheme,
            revision=request.revision,
            offline=request.offline,
            kept=self.kept,
        )

    def finished(self) -> Fit | None:
        """What was found before, if the store is there already.

        Raises:
            UsageError: If the directory has something else.
        """
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return None
        facts = self.root / FIT_FACTS
        if is_store(self.root) and facts.exists():
            try:
                found = Fit.from_json(
                    read_json_object(facts, limits=FACTS_LIMITS, error=StoreError, advice="Fit it anew.")
                )
            except ValueError:
                found = None
            if found is not None and found.settings == self.settings:
                return found
        raise UsageError(
            f"{self.root} is there already, and was not made by this command.",
            advice="Name another output, or remove it.",
            path=self.root,
        )

    def clear(self) -> None:
        """Removes work of the same request that was left when the store was finished."""
        path = work_path(self.root)
        if path.exists() and WorkFolder.is_of(path, self.settings):
            WorkFolder(path, self.settings).clear()

    def check(self, *, machine: Machine | None = None) -> Sizing:
        """Refuses what cannot succeed; gives the size as far as it is known without measuring."""
        request = self.request
        check_source(self.source)
        check_full(self.source)
        sizing = self.sizer.choose(bits=request.bits, domains=request.domains, machine=machine, measure=False)
        self.sizer.check_running(request.work_nbytes, DEFAULT_CONTEXT, "--work-memory")
        check_kinds(self.source, request.material)
        return sizing

    def divide(self, folder: Path) -> Division:
        """Writes the texts to decide by and to score.

        Raises:
            UsageError: If one is on both sides, or a domain that was asked for has no text to score.
        """
        request = self.request
        found = divide(request.material, request.texts, folder, tokens=request.calibration_tokens)
        domains = {*found.scored, *(one.domain for one in found.media)}
        unscored = [domain for domain in request.domains if domain not in domains]
        if unscored:
            raise UsageError(
                f"There is nothing to score of {' and '.join(unscored)}, which the store is for.",
                advice="Add --text DOMAIN=PATH, with documents that are not calibrated on; or more sounds or pictures.",
                domains=unscored,
            )
        check_apart(self.source, found)
        return found
