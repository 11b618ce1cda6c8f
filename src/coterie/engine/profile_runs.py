"""Begins a recording run of a model, or goes on with one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from coterie.engine.source import ModelSource
from coterie.errors import ProfileIdentityError, UnsupportedError, UsageError
from coterie.hf.banks import ExpertBank
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts, resumable
from coterie.profiles.recording import SEGMENT_TOKENS


@contextmanager
def recording_run(
    where: str | Path,
    source: ModelSource,
    shapes: tuple[BankShape, ...],
    *,
    label: str,
    resume: bool,
    several_models: bool,
    vocabulary: int,
    segment_tokens: int | None,
) -> Iterator[Recording]:
    """Opens a profile and begins a run in it, or goes on with one; writes what is left at the end.

    Args:
        where: The profile, which is made if it is not there.
        source: What the model is opened from.
        shapes: Its banks.
        label: Of the run.
        resume: Go on with the latest run of this model under this label, if there is one.
        several_models: Whether the profile may be about other models, too.
        vocabulary: Tokens kept per expert.
        segment_tokens: Tokens after which a segment ends; None for as many as is usual.

    Raises:
        UsageError: If a segment would have no token, or as :func:`run_of`.
        ProfileError: If the profile cannot be used; at the end it says what is lost.
    """
    if segment_tokens is not None and segment_tokens < 1:
        raise UsageError("A segment has at least one token.", got=segment_tokens)
    with ProfileDatabase(where, create=True) as database:
        run = run_of(source, shapes, database, label=label, resume=resume, several_models=several_models)
        tokens = SEGMENT_TOKENS if segment_tokens is None else segment_tokens
        with Recording(database, run, segment_tokens=tokens, vocabulary=vocabulary) as recording:
            yield recording


def bank_shapes(banks: Iterable[ExpertBank], experts_per_token: int | None) -> tuple[BankShape, ...]:
    """The shapes of an open model's banks, in order.

    Raises:
        UnsupportedError: If it is not known how many experts a token gets.
    """
    shapes = []
    for bank in banks:
        # An override says nothing of classes that have a way of their own to choose.
        own = bank.choices
        top_k = experts_per_token if experts_per_token is not None and own == bank.top_k else own
        if top_k is None:
            raise UnsupportedError(
                f"The configuration does not say how many experts of {bank.key} a token gets.",
                advice="Please report the model's class.",
                bank=bank.key,
            )
        shapes.append(BankShape(bank=bank.key, experts=bank.num_experts, top_k=min(top_k, bank.num_experts)))
    return tuple(sorted(shapes, key=lambda shape: shape.bank))


def run_of(
    source: ModelSource,
    shapes: tuple[BankShape, ...],
    database: ProfileDatabase,
    *,
    label: str,
    resume: bool,
    several_models: bool,
) -> RunFacts:
    """What is to be recorded: a new run, or the latest one of this label.

    Args:
        source: What the model was opened from.
        shapes: Its banks.
        database: Where to.
        label: Of the run.
        resume: Go on with the latest run of this model under this label, if there is one.
        several_models: Whether the profile may be about other models, too.

    Raises:
        ProfileIdentityError: If the profile is about another model.
        UsageError: If the run to go on with had other banks, or another number of experts per token.
    """
    others = {key: name for key, name in database.identities().items() if key != source.identity}
    if others and not several_models:
        identity, name = next(iter(others.items()))
        raise ProfileIdentityError(
            f"{database.name} is about the model {name} ({identity}), not about {source.name} ({source.identity}).",
            advice="Give another file. One profile of several models has to be asked for.",
            expected=identity,
            got=source.identity,
        )
    found = resumable(database, identity=source.identity, label=label) if resume else None
    if found is None:
        return RunFacts(
            identity=source.identity,
            model=source.name,
            model_class=source.model_class.__name__,
            banks=shapes,
            tool_version=version("coterie"),
            label=label,
            tokenizer=source.name,
        )
    known = {shape.bank: shape for shape in found.banks}
    for shape in shapes:
        if shape.bank in known and known[shape.bank] != shape:
            before = known[shape.bank]
            raise UsageError(
                f"The run {label!r} was recorded with {before.top_k} of {before.experts} experts per token of "
                f"{shape.bank}, not with {shape.top_k} of {shape.experts}.",
                advice="Give another label, or the same options as then.",
                expected=before,
                got=shape,
            )
    return replace(found, banks=shapes)
