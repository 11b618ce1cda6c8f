"""`coterie experts`: which experts do what, as a profile knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coterie.cli.console import plain_table, print_json, print_note, print_table, results
from coterie.cli.options import (
    JsonOption,
    ProfileArgument,
    ProfileModelOption,
    RecordedComponentOption,
    RecordedPhaseOption,
    named_model,
)

if TYPE_CHECKING:
    from coterie.profiles import ExpertCard, Profile, ProfileDatabase, Ranking

command = typer.Typer(add_completion=False, no_args_is_help=True, help="Asks a profile which experts do what.")

DomainOption = Annotated[
    str | None, typer.Option("--domain", "-d", metavar="NAME", show_default=False, help="Such as code.")
]
ModalityOption = Annotated[
    str | None,
    typer.Option("--modality", "-m", metavar="NAME", show_default=False, help="text, image, audio, video or speech."),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="Experts to list at most.")]


@contextmanager
def _opened(where: str, model: str | None) -> Iterator[tuple[ProfileDatabase, Profile]]:
    from coterie.profiles import Profile, ProfileDatabase

    with ProfileDatabase(where) as database:
        yield database, Profile.read(database, model)


@command.command()
def rank(
    profile: ProfileArgument,
    domain: DomainOption = None,
    modality: ModalityOption = None,
    phase: RecordedPhaseOption = None,
    component: RecordedComponentOption = None,
    limit: LimitOption = 20,
    specialists: Annotated[
        bool, typer.Option("--specialists", help="Leave out experts that are no specialists.")
    ] = False,
    model: ProfileModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ranks experts by how much they handle a domain, a modality, or both.

    Specialisation is the share of the tokens that select an expert, with its 95 % interval; chance is k/E. A specialist
    is above chance and above its share of all other tokens (q at most 0.05 over all experts), and is so in each half of
    the data. docs/profiles.md says how that is tested.
    """
    from coterie.profiles import rank_experts

    with _opened(profile, model) as (_, found):
        ranking = rank_experts(
            found,
            domain=domain,
            modality=modality,
            phase=phase,
            component=component,
            limit=limit,
            specialists_only=specialists,
        )
    if as_json:
        print_json(ranking)
    else:
        _print_ranking(ranking)


def _print_ranking(ranking: Ranking) -> None:
    from coterie.profiles.inference import LEAST_BLOCKS

    numbers = ("layer", "expert", "share", "95 %", "× chance", "others", "gate", "q")
    table = plain_table("component", *numbers, "specialist", right=numbers)
    for expert in ranking.experts:
        table.add_row(
            _place(expert.component, expert.bank),
            str(expert.layer),
            str(expert.expert_id),
            f"{expert.specialisation:.1%}",
            _interval(expert.low, expert.high),
            f"{expert.lift:.2f}",
            "" if expert.others is None else f"{expert.others:.1%}",
            f"{expert.gate_share:.1%}",
            _q(expert.q_value),
            "yes" if expert.specialist else "",
        )
    print_table(table)
    asked = " ".join(name for name in (ranking.domain, ranking.modality, ranking.phase) if name is not None)
    results().print(
        f"{ranking.specialists} specialists of {asked} among {ranking.total:,} experts; {ranking.tokens:,} tokens in "
        f"{ranking.blocks} blocks of segments",
    )
    if ranking.blocks < LEAST_BLOCKS:
        print_note(
            f"Too few segments: nothing is tested, which takes {LEAST_BLOCKS} of each domain. Record more, or record "
            f"again into another profile with fewer tokens in a segment: coterie profile record --segment-tokens 64."
        )


@command.command()
def show(
    profile: ProfileArgument,
    layer: Annotated[int, typer.Argument(metavar="LAYER", show_default=False, help="Of the expert.")],
    expert: Annotated[int, typer.Argument(metavar="EXPERT", show_default=False, help="Its number in the layer.")],
    component: RecordedComponentOption = None,
    bank: Annotated[
        str | None, typer.Option("--bank", metavar="NAME", show_default=False, help="Where a layer has several.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            show_default=False,
            callback=named_model,
            help="The model whose tokenizer says what tokens are: a store, a checkpoint, a Hub id. Default: that which "
            "the profile names, if it is here.",
        ),
    ] = None,
    model: ProfileModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows one expert: its domains and modalities, tokens, companions, trust."""
    from coterie.profiles import expert_card

    with _opened(profile, model) as (database, found):
        card = expert_card(found, database, layer, expert, component=component, bank=bank)
    if as_json:
        print_json(card)
    else:
        _print_card(card, tokenizer)


def _print_card(card: ExpertCard, tokenizer: str | None) -> None:
    out = results()
    out.print(
        f"Expert {card.expert_id} of {card.experts}, {card.component} layer {card.layer} ({card.bank}), {card.model}",
    )
    out.print(
        f"{card.activations:,} of {card.tokens:,} tokens ({card.activations / max(card.tokens, 1):.1%}), "
        f"{card.gate_share:.1%} of the layer's gate mass"
    )
    reap = "outputs not measured" if card.reap_score is None else f"REAP score {card.reap_score:.4g}"
    out.print(f"trust {card.trust:.2f} ({reap}; {card.trust_observations:,} observations)")
    out.print()
    numbers = ("tokens", "share", "95 %", "× chance", "q")
    table = plain_table("tokens of", *numbers, "specialist", right=numbers)
    for share in (*card.domains, *card.modalities):
        figures = share.figures
        table.add_row(
            share.name,
            f"{figures.tokens:,}",
            f"{figures.specialisation:.1%}",
            _interval(figures.low, figures.high),
            f"{figures.lift:.2f}",
            _q(figures.q_value),
            "yes" if figures.specialist else "",
        )
    print_table(table)
    if card.top_tokens:
        out.print(f"\n{_tokens(card, tokenizer)}")
    if card.companions:
        listed = ", ".join(f"{one.expert_id} (lift {one.lift:.2f})" for one in card.companions)
        out.print(f"\nChosen together with: {listed}")


def _tokens(card: ExpertCard, tokenizer: str | None) -> str:
    """The tokens that the expert is chosen for, as text where a tokenizer is to be had."""
    from coterie.generation.token_texts import recorded_token_texts, token_texts
    from coterie.profiles.heavy_tokens import quoted

    text_of = recorded_token_texts(card.tokenizer) if tokenizer is None else token_texts(tokenizer)

    def name(token: int) -> str:
        return str(token) if text_of is None else quoted(text_of(token))

    listed = ", ".join(
        f"{name(token.token_id)} ({token.specialisation:.0%} of {token.occurrences:,})" for token in card.top_tokens
    )
    if text_of is not None:
        return f"Input tokens: {listed}"
    of = f" of {card.tokenizer}" if card.tokenizer else ""
    return f"Input tokens, by id{of}: {listed}\n--tokenizer MODEL shows them as text."


@command.command()
def kinds(
    profile: ProfileArgument,
    kind: Annotated[
        Literal["universal", "specialist", "mixed", "unused"] | None,
        typer.Option("--kind", show_default=False, help="List the experts of this kind. Default: universal."),
    ] = "universal",
    modality: ModalityOption = None,
    phase: RecordedPhaseOption = None,
    component: RecordedComponentOption = None,
    limit: LimitOption = 20,
    model: ProfileModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tells universal experts, which are above chance in every domain, from specialised ones.

    The list begins with those that serve most domains alike.
    """
    from coterie.profiles import expert_kinds

    with _opened(profile, model) as (_, found):
        answer = expert_kinds(found, modality=modality, phase=phase, component=component)
    if as_json:
        print_json(answer)
        return
    results().print(", ".join(f"{count:,} {name}" for name, count in answer.counts.items()))
    names = list(answer.tokens)
    table = plain_table("component", "layer", "expert", "domains served", *names, right=("layer", "expert", *names))
    listed = sorted((one for one in answer.experts if one.kind == kind), key=lambda one: -one.effective_domains)
    for one in listed[:limit]:
        table.add_row(
            _place(one.component, one.bank),
            str(one.layer),
            str(one.expert_id),
            f"{one.effective_domains:.1f}",
            *(f"{one.shares.get(name, 0.0):.1%}" for name in names),
        )
    print_table(table)


@command.command()
def compare(
    profile: ProfileArgument,
    first: Annotated[str, typer.Argument(metavar="DOMAIN", show_default=False, help="A domain.")],
    second: Annotated[str, typer.Argument(metavar="OTHER", show_default=False, help="Another one.")],
    modality: ModalityOption = None,
    phase: RecordedPhaseOption = None,
    component: RecordedComponentOption = None,
    limit: LimitOption = 20,
    model: ProfileModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what distinguishes one domain from another: the experts whose shares differ, and how far layers diverge."""
    from coterie.profiles import compare_domains

    with _opened(profile, model) as (_, found):
        contrast = compare_domains(
            found, first, second, modality=modality, phase=phase, component=component, limit=limit
        )
    if as_json:
        print_json(contrast)
        return
    numbers = ("layer", "expert", first, second, "difference", "95 %", "q")
    table = plain_table("component", *numbers, "distinguishes", right=numbers)
    for one in contrast.experts:
        table.add_row(
            _place(one.component, one.bank),
            str(one.layer),
            str(one.expert_id),
            f"{one.first:.1%}",
            f"{one.second:.1%}",
            f"{one.difference:+.1%}",
            _interval(one.low, one.high),
            _q(one.q_value),
            "yes" if one.distinguishes else "",
        )
    print_table(table)
    out = results()
    out.print(
        f"{contrast.distinguishing:,} of {contrast.total:,} experts distinguish {first} "
        f"({contrast.first_tokens:,} tokens) from {second} ({contrast.second_tokens:,})",
    )
    if contrast.layers:
        furthest = max(contrast.layers, key=lambda layer: layer.divergence)
        mean = sum(layer.divergence for layer in contrast.layers) / len(contrast.layers)
        out.print(
            f"Jensen–Shannon divergence: {mean:.3f} bits on average, {furthest.divergence:.3f} at most, in "
            f"{furthest.component} layer {furthest.layer}"
        )


@command.command()
def spare(
    profile: ProfileArgument,
    domain: DomainOption = None,
    modality: ModalityOption = None,
    phase: RecordedPhaseOption = None,
    component: RecordedComponentOption = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share", min=0, max=0.99, metavar="X", show_default=False, help="Spare this share of each layer, as 0.25."
        ),
    ] = None,
    lose: Annotated[
        float,
        typer.Option("--lose", min=0, max=0.99, metavar="X", help="Else: as many as lose this share of gate mass."),
    ] = 0.0,
    limit: LimitOption = 20,
    model: ProfileModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows which experts a workload can do without, and the gate mass that goes with them.

    How much worse the model gets without them is measured with `coterie evaluate`.
    """
    from coterie.profiles import spare_experts

    with _opened(profile, model) as (_, found):
        sparing = spare_experts(
            found, domain=domain, modality=modality, phase=phase, component=component, share=share, most_lost=lose
        )
    if as_json:
        print_json(sparing)
        return
    numbers = ("layer", "expert", "tokens", "share at most", "gate", "lost so far")
    table = plain_table("component", *numbers, right=numbers)
    for one in sparing.experts[:limit]:
        table.add_row(
            _place(one.component, one.bank),
            str(one.layer),
            str(one.expert_id),
            f"{one.activations:,}",
            "" if one.high is None else f"{one.high:.2%}",
            f"{one.gate_share:.2%}",
            f"{one.lost:.2%}",
        )
    print_table(table)
    results().print(
        f"{len(sparing.experts):,} of {sparing.total:,} experts; {sparing.never:,} were never selected in "
        f"{sparing.tokens:,} tokens; {sparing.gate_mass_lost:.2%} of the gate mass goes with them"
    )


def _place(component: str, bank: str) -> str:
    """The component, and the bank where it is not the usual one."""
    return component if bank == "mlp" else f"{component} {bank}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.1%} – {high:.1%}"


def _q(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"
