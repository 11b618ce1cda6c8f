"""What other programs call the options of Coterie's commands: taken for them, without a word in the help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

_OTHERS = {
    "--context-length": "--max-context",
    "--chat-template-config": "--template-option",
    "--chat-template-file": "--chat-template",
    "--chat-template-kwargs": "--template-option",
    "--ctx-size": "--max-context",
    "--grammar-file": "--grammar",
    "--json-schema-file": "--json-schema",
    "--max-kv-size": "--max-context",
    "--max-tokens": "--max-new-tokens",
    "--min-tokens": "--min-new-tokens",
    "--n-ctx": "--max-context",
    "--n-predict": "--max-new-tokens",
    "--n-threads": "--threads",
    "--num-ctx": "--max-context",
    "--num-predict": "--max-new-tokens",
    "--num-threads": "--threads",
    "--predict": "--max-new-tokens",
    "--repetition-penalty": "--repeat-penalty",
    "--reverse-prompt": "--stop",
    "--stop-sequence": "--stop",
    "--stop-string": "--stop",
    "--stop-strings": "--stop",
    "--system-prompt": "--system",
    "--temp": "--temperature",
}
"""As llama.cpp, ollama, mlx-lm, transformers and vLLM call it -> as it is called here."""

_ARGUMENTS = {"--model": "model", "-m": "model", "--prompt": "prompt", "-p": "prompt"}
"""Options of other programs that are arguments here; in this order."""


class HabitualCommand(TyperCommand):
    """A command that understands the names of options that users know from other programs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line as click does, after names that other programs use were replaced by ours."""
        own = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        places = [parameter.name for parameter in self.params if parameter.param_type_name == "argument"]
        renamed = list(_renamed(args, own))
        return super().parse_args(ctx, _placed(renamed, {k: v for k, v in _ARGUMENTS.items() if k not in own}, places))


def _renamed(args: Sequence[str], own: set[str]) -> Iterator[str]:
    """The arguments with our names for options; what this command has is never taken for something else."""
    for number, argument in enumerate(args):
        if argument == "--":
            yield from args[number:]
            return
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name not in own:
            dashed = name.replace("_", "-")
            ours = dashed if dashed in own else _OTHERS.get(dashed)
            if ours in own:
                yield f"{ours}{equals}{value}"
                continue
        yield argument


def _placed(args: list[str], flags: Mapping[str, str], places: Sequence[str | None]) -> list[str]:
    """The arguments, with those that were given as options where they belong."""
    left: list[str] = []
    given: dict[str, str] = {}
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            left += [argument, *rest]
            break
        name, equals, value = argument.partition("=")
        place = flags.get(name)
        if place is None or place not in places or place in given:
            left.append(argument)
            continue
        taken = value if equals else next(rest, None)
        if taken is None:
            left.append(argument)  # click says what is wrong with it
        else:
            given[place] = taken
    if "model" in given:
        left.insert(0, given["model"])
    if "prompt" in given:
        left += ["--"] * ("--" not in left) + [given["prompt"]]
    return left
