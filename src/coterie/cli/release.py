"""`coterie doctor --transformers`: does the installed transformers do all that Coterie relies on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from coterie.cli.console import notes, plain_table, print_json, print_table, results
from coterie.errors import UsageError

if TYPE_CHECKING:
    from coterie.hf.contract import Verdict

SCHEMA_VERSION = 1


def examine_release(*, path: str | None, disk: str | None, quick: bool, as_json: bool) -> int:
    """Runs all checks and prints what came of them.

    Args:
        path: As given to the command.
        disk: Likewise.
        quick: Likewise.
        as_json: Likewise.

    Returns:
        The exit code: 1 if something that is relied on is otherwise.

    Raises:
        UsageError: If an option is given that says what to measure.
    """
    given = {"PATH": path is not None, "--disk": disk is not None, "--quick": quick}
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(
            f"{name} is about the machine, --transformers is not.", advice="Run the two one after the other."
        )
    from coterie.generation.contracts import examine_transformers
    from coterie.hf.releases import TESTED, installed, newer_than_tested

    with notes().status("trying what Coterie relies on"):
        verdicts = examine_transformers()
    ok = all(verdict.ok for verdict in verdicts)
    release = installed()
    if as_json:
        print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "transformers": release,
                "tested": list(TESTED),
                "newer_than_tested": newer_than_tested(release),
                "ok": ok,
                "contracts": list(verdicts),
            }
        )
    else:
        _print(release, TESTED, verdicts)
    return 0 if ok else 1


def _print(release: str, tested: tuple[str, ...], verdicts: tuple[Verdict, ...]) -> None:
    table = plain_table("what is relied on", "")
    for verdict in verdicts:
        table.add_row(verdict.name, Text("ok", style="green") if verdict.ok else Text("failed", style="red"))
    print_table(table)
    results().print()
    known = (
        "which the tests run with" if release in tested else f"which the tests do not run with ({', '.join(tested)})"
    )
    results().print(f"transformers {release}, {known}.")
    failed = [verdict for verdict in verdicts if not verdict.ok]
    if not failed:
        results().print("It does all that Coterie relies on.", style="green")
    for verdict in failed:
        what = "No model is opened." if verdict.essential else "Models open all the same."
        results().print(
            f"- {verdict.name}: {verdict.problem} It is relied on for this: {verdict.protects} {what} "
            f"({verdict.follower} has to follow.)",
        )
