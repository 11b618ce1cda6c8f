"""What `coterie plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.cli.console import facts_table, plain_table, print_table, results
from coterie.spec import format_bytes
from coterie.spec.footprint import PART_USES

if TYPE_CHECKING:
    from coterie.inspection import MemoryFit
    from coterie.planner import BudgetPlan, Knee, Plan, Range, Speed

_BUSY = 0.3
"""Processors that others use, from which on it is said."""
_USES = {"encoding": "a picture or sound is encoded", "speaking": "the model speaks"}


def print_plan(plan: Plan) -> None:
    """Prints a plan: the model, its budgets, other precisions, disk, commands."""
    _print_model(plan)
    if len(plan.budgets) > 1:
        _print_budgets(plan)
    else:
        _print_budget(plan.budgets[0], plan)
    _print_domains(plan)
    _print_precisions(plan)
    _print_disk(plan)
    _print_commands(plan)


def _print_model(plan: Plan) -> None:
    table = facts_table()
    model = plan.model
    stored = f"experts {plan.scheme}, linear layers {plan.dense_scheme}"
    table.add_row(model.kind, f"{model.model}, as a store: {stored}" if plan.planned else f"{model.model} ({stored})")
    table.add_row("class", model.model_class)
    table.add_row(
        "a token uses", f"{format_bytes(int(plan.working_set_nbytes))} of {format_bytes(plan.expert_nbytes)} of experts"
        + ("" if plan.model.component else f" ({plan.component})"),
    )  # fmt: skip
    longest = "" if plan.longest_context is None else f" of {plan.longest_context} that the model was made for"
    table.add_row("context", f"{plan.context} tokens{longest}")
    if plan.machine is not None and plan.machine.disk is not None:
        machine, disk = plan.machine, plan.machine.disk
        table.add_row(
            "measured here",
            f"{machine.threads} threads, memory {_rate(machine.bus)}, disk {_rate(disk.random)} ({disk.path})",
        )
        if machine.others is not None and machine.others >= _BUSY:
            table.add_row("", f"while other programs used {machine.others:.1f} processors: alone, it is faster")
    print_table(table)


def _print_budget(budget: BudgetPlan, plan: Plan) -> None:
    out = results()
    out.print()
    fit = budget.memory
    if budget.why_not is not None:
        out.print(f"It will not run in {format_bytes(fit.memory)}, because {budget.why_not}.", style="red")
        _print_smallest(budget)
        return
    out.print(f"It will run in {format_bytes(fit.memory)}.")
    _print_memory(fit, plan)
    table = facts_table()
    _add_forecast(table, budget, plan)
    table.add_row("largest context", f"{budget.largest_context} tokens in this budget, with few experts left")
    table.add_row("smallest memory", f"{format_bytes(fit.minimum)} for {fit.context} tokens")
    held = format_bytes(fit.held_nbytes)
    table.add_row("later", f"at most {held}, however long it runs: with the whole context and a full cache")
    table.add_row("all experts", f"stay in {format_bytes(plan.all_experts)}")
    if plan.knee is not None:
        table.add_row("knee", _knee(plan.knee))
    out.print()
    print_table(table)
    _print_gains(budget)


def _print_memory(fit: MemoryFit, plan: Plan) -> None:
    out = results()
    out.print()
    table = plain_table("memory", "bytes", "what it is", right=("bytes",))
    dense = ", ".join(f"{part.part} {format_bytes(part.nbytes)}" for part in plan.dense_parts)
    for name, nbytes, what in (
        ("process", fit.process_nbytes, "interpreter and libraries"),
        ("outside experts", fit.dense_nbytes, f"always in memory; in the file: {dense}" if dense else "always there"),
        ("keys and values", fit.kv_nbytes, f"of {fit.context} tokens"),
        ("activations", fit.activation_nbytes, f"of a prompt of {fit.context} tokens"),
        ("buffers", fit.buffer_nbytes, "for reading and dequantising experts"),
        ("libraries", fit.library_nbytes, "at work, with the kernels that they compile"),
        ("margin", fit.margin_nbytes, "left free"),
        ("experts", fit.expert_nbytes, f"{fit.share:.0%} of the bytes of all experts fit"),
    ):
        table.add_row(name, format_bytes(nbytes), what)
    print_table(table)
    for use, lent in fit.lent.items():
        parts = [f"{part.path} {format_bytes(part.nbytes)}" for part in fit.parts if part.use == use]
        out.print(
            f"While {_USES[use]}, {' and '.join(parts)} are in memory, too, and "
            f"{format_bytes(fit.expert_nbytes - lent)} are left for experts."
        )
    if not fit.comfortable:
        out.print(
            f"That is less than twice the {format_bytes(int(plan.working_set_nbytes))} of experts that a token uses: "
            "expect few hits.",
            style="yellow",
        )


def _add_forecast(table: object, budget: BudgetPlan, plan: Plan) -> None:
    add = table.add_row  # type: ignore[attr-defined]
    if budget.share >= 1:
        add("hit rate", "100%: all experts stay in memory once they were read")
    elif budget.hit_rate is not None and budget.read_per_token is not None:
        hits, read = budget.hit_rate, budget.read_per_token
        add("hit rate", f"{_percents(hits.rate)}; {hits.grade}: {hits.basis}")
        add("read per token", f"{format_bytes(int(read.low))} to {format_bytes(int(read.high))}")
    speed = budget.speed
    if speed is None:
        why = "--quick" if plan.machine is None else "not in this precision"
        add("speed", f"not measured ({why})")
        return
    add("speed", f"{_tokens(speed.tokens_per_second)}; with an empty cache {_tokens(speed.cold_tokens_per_second)}")
    add("first token", f"after {_seconds(speed.first_token_s)}, of a prompt of {plan.prompt_tokens} tokens")
    add("an answer", f"of {plan.answer_tokens} tokens takes {_seconds(speed.answer_s)}")
    add("the limit", _LIMITS[speed.limit])


_LIMITS = {
    "disk": "the disk: experts are waited for longer than they are computed with",
    "memory bus": "the memory bus: weights are multiplied about as fast as they can be read from memory",
    "processor": "the processor: weights are read from memory faster than they are multiplied",
    "memory": "memory: it holds fewer experts than one token uses",
}


def _print_gains(budget: BudgetPlan) -> None:
    if not budget.gains:
        return
    results().print()
    table = plain_table("what would help", "speed", "likeliest", "", right=("speed", "likeliest"))
    for gain in budget.gains:
        table.add_row(gain.change, _tokens(gain.tokens_per_second), f"{gain.ratio:.2f} ×", gain.note)
    print_table(table)


def _print_smallest(budget: BudgetPlan) -> None:
    fit = budget.memory
    out = results()
    out.print(f"The smallest memory that would do is {format_bytes(fit.minimum)}, for {fit.context} tokens of context.")
    if budget.largest_context:
        out.print(f"In this budget it would run with --context {budget.largest_context}.")


def _print_budgets(plan: Plan) -> None:
    results().print()
    sizes = ("budget", "outside experts", "context", "for experts", "share")
    uses = [use for use in PART_USES if any(use in one.memory.lent for one in plan.budgets)]
    speeds = ("hit rate", "speed", "first token") if any(one.speed for one in plan.budgets) else ("hit rate",)
    while_used = tuple(f"while {use}" for use in uses)
    columns = (*sizes, *while_used, *speeds)
    table = plain_table(*columns, "", right=columns)
    for one in plan.budgets:
        fit = one.memory
        cells = [*map(format_bytes, (fit.memory, fit.dense_nbytes, fit.context_nbytes))]
        if one.why_not is not None:
            blank = ["–"] * (len(columns) - len(cells))
            table.add_row(*cells, *blank, f"will not run: {format_bytes(fit.minimum)} are needed")
            continue
        cells += [format_bytes(fit.expert_nbytes), f"{one.share:.0%}"]
        cells += [format_bytes(fit.expert_nbytes - fit.lent.get(use, 0)) for use in uses]
        cells.append("" if one.hit_rate is None else _percents(one.hit_rate.rate))
        if len(speeds) > 1:
            cells += _speed_cells(one.speed)
        table.add_row(*cells, _remark(one))
    print_table(table)
    grades = {f"{one.hit_rate.grade}: {one.hit_rate.basis}" for one in plan.budgets if one.hit_rate is not None}
    results().print(f"With a context of {plan.context} tokens. Hit rates by {' and '.join(sorted(grades))}.")
    results().print(f"All experts stay in {format_bytes(plan.all_experts)}.")
    if plan.knee is not None:
        results().print(f"Knee: {_knee(plan.knee)}.")


def _speed_cells(speed: Speed | None) -> list[str]:
    if speed is None:
        return ["–", "–"]
    return [_tokens(speed.tokens_per_second), _seconds(speed.first_token_s)]


def _remark(budget: BudgetPlan) -> str:
    if not budget.memory.comfortable:
        return "expect few hits"
    return "" if budget.speed is None else f"limit: {budget.speed.limit}"


def _print_domains(plan: Plan) -> None:
    if not plan.domains:
        return
    results().print()
    budgets = [f"hit rate in {format_bytes(one.memory.memory)}" for one in plan.budgets]
    most = f"{plan.domains[0].most:.0%} of it in"
    table = plain_table("domain", "recorded", *budgets, most, right=("recorded", *budgets, most))
    for one in plan.domains:
        rates = ["–" if hits is None else _percents(hits.rate) for hits in one.hit_rates]
        table.add_row(one.domain, f"{one.tokens} tokens", *rates, format_bytes(one.memory_for_most))
    print_table(table)
    results().print(
        "By profile: the share of what a domain asks for that the experts have that it uses most, as many as fit. "
        "Speed is for the domain that misses most."
    )


def _print_precisions(plan: Plan) -> None:
    if not plan.precisions:
        return
    results().print()
    memory = format_bytes(plan.budgets[0].memory.memory)
    numbers = ("store", "works in", f"share in {memory}", "speed", "KL divergence")
    table = plain_table("experts", "linear layers", *numbers, right=numbers)
    for one in plan.precisions:
        runs = one.share > 0
        table.add_row(
            one.scheme,
            one.dense_scheme,
            format_bytes(one.store_nbytes),
            format_bytes(one.minimum),
            f"{one.share:.0%}" if runs else "–",
            "–" if one.tokens_per_second is None else _tokens(one.tokens_per_second),
            "–" if one.divergence is None else f"{one.divergence:.5f}",
        )
    print_table(table)
    results().print(
        "KL divergence in nats per token of the bundled model, measured. Of yours, `coterie evaluate STORE --against "
        "MODEL` measures it."
    )


def _print_disk(plan: Plan) -> None:
    need = plan.disk
    if not need.download_nbytes and not need.store_nbytes:
        return
    results().print()
    table = facts_table()
    if need.download_nbytes:
        table.add_row("download", format_bytes(need.download_nbytes))
    if need.store_nbytes:
        table.add_row("store", format_bytes(need.store_nbytes))
    table.add_row("disk free", f"{format_bytes(need.free_nbytes)} at {need.path}")
    if need.preparing_s is not None:
        table.add_row("to prepare", f"{_seconds(need.preparing_s)} once it is downloaded")
    print_table(table)
    if not need.enough:
        results().print("The disk has no room for all of that.", style="red")


def _print_commands(plan: Plan) -> None:
    runs = [one for one in plan.budgets if one.why_not is None]
    if not runs:
        return
    results().print()
    for line in (*plan.preparing, runs[-1].command):
        results().print(f"    {line}")


def _knee(knee: Knee) -> str:
    return (
        f"beyond {format_bytes(knee.memory)}, with {knee.hit_rate:.0%} hits, more memory adds fewer and fewer of them"
    )


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.1f} GB/s"


def _percents(rate: Range) -> str:
    return f"{rate.low:.0%} to {rate.high:.0%}"


def _tokens(rate: Range) -> str:
    return f"{_number(rate.low)} to {_number(rate.high)} tok/s"


def _seconds(value: Range) -> str:
    if value.low >= 120:
        return f"{value.low / 60:.0f} to {value.high / 60:.0f} min"
    return f"{_number(value.low)} to {_number(value.high)} s"


def _number(value: float) -> str:
    """Two digits: more would not be true."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
