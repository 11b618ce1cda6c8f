"""The table of commands: a name, the module that holds it, one line of help.

The module is imported when its command runs or when its own ``--help`` is asked, never before: `coterie --help` reads
this table only. A module of :mod:`coterie.cli` holds one command under the name ``command``: a function with typed
parameters, or a ``typer.Typer`` where the command has subcommands.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from coterie.cli.option_names import HabitualCommand
from coterie.cli.other_names import unknown_command


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One line of the table.

    Attributes:
        name: What the user types.
        module: Module that defines ``command``.
        summary: One line of help.
    """

    name: str
    module: str
    summary: str


COMMANDS = (
    CommandEntry("demo", "coterie.cli.demo", "Show the bundled model at work, end to end, with proof of exactness."),
    CommandEntry("doctor", "coterie.cli.doctor", "Examine this machine: processor, memory, disk, versions; advise."),
    CommandEntry("extract", "coterie.cli.extract", "Make a store of a checkpoint, or add experts to one."),
    CommandEntry("quantize", "coterie.cli.quantize", "Make a smaller store of a store or a checkpoint."),
    CommandEntry(
        "fit", "coterie.cli.fit", "Make the best store of a model for your memory, and measure what it loses."
    ),
    CommandEntry("prune", "coterie.cli.prune", "Make a store with fewer experts, chosen by what a profile recorded."),
    CommandEntry("export", "coterie.cli.export", "Make a checkpoint of a store, for transformers and other engines."),
    CommandEntry("publish", "coterie.cli.publish", "Upload a store to the Hub, where it is opened by its id."),
    CommandEntry("inspect", "coterie.cli.inspect", "Show what a store or checkpoint holds."),
    CommandEntry("plan", "coterie.cli.plan", "Say whether a model will run here, how fast, and what would help."),
    CommandEntry("verify", "coterie.cli.verify", "Check a store or checkpoint; compare it with its source."),
    CommandEntry("generate", "coterie.cli.generate", "Continue a prompt, with pictures and sounds; stream the text."),
    CommandEntry("chat", "coterie.cli.chat", "Talk with a model."),
    CommandEntry("voices", "coterie.cli.voices", "List the voices in which a model speaks."),
    CommandEntry("serve", "coterie.cli.serve", "Serve a model over HTTP, for clients of OpenAI and Anthropic."),
    CommandEntry("bench", "coterie.cli.bench", "Measure how fast a model runs here, and where the time goes."),
    CommandEntry("evaluate", "coterie.cli.evaluate", "Measure perplexity, and what a scheme or partial store loses."),
    CommandEntry("curve", "coterie.cli.curve", "Measure how quality falls with fewer experts, bits and reads."),
    CommandEntry("replay", "coterie.cli.replay", "Compare eviction policies on recorded routing."),
    CommandEntry("profile", "coterie.cli.profile", "Record, show, merge, exchange and publish what experts do."),
    CommandEntry("experts", "coterie.cli.experts", "Ask a profile which experts do what."),
    CommandEntry("routers", "coterie.cli.routers", "Show what the geometry of a model's routers says, without data."),
    CommandEntry("plot", "coterie.cli.plot", "Draw pictures of profiles, recorded routing and curves."),
    CommandEntry("report", "coterie.cli.report", "Answer on one page what a model's experts do, from a profile."),
    CommandEntry("stores", "coterie.cli.stores", "List the stores on this machine, remove or refresh one."),
)
"""In the order in which `coterie --help` shows them: from the first thing a newcomer does to the last."""


def build(entry: CommandEntry) -> Any:
    """Imports a command's module and makes the click command out of what it defines."""
    target = import_module(entry.module).command
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False)
        app.command(entry.name, cls=HabitualCommand)(target)
    made = typer.main.get_command(app)
    made.name = entry.name
    _reflow_help(made)
    return made


def _reflow_help(command: Any) -> None:
    """Joins the lines of each paragraph of the help, which Typer would print as they stand in the docstring."""
    paragraphs = (command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for subcommand in getattr(command, "commands", {}).values():
        _reflow_help(subcommand)


class LazyCommand(TyperCommand):
    """Stands for a command until it is called; knows no more than the table does."""

    def __init__(self, entry: CommandEntry) -> None:
        super().__init__(entry.name, help=entry.summary, add_help_option=False)
        self.entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Hands over to the real command: its context is what gets invoked."""
        return build(self.entry).make_context(info_name, args, parent=parent, **extra)


class CoterieGroup(TyperGroup):
    """The root command: every entry of the table, lazily."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in COMMANDS:
            self.add_command(LazyCommand(entry))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that the first argument names.

        Raises:
            UsageError: If there is none; says what does the same.
        """
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_command(args[0], self.commands)
        return super().resolve_command(ctx, args)
