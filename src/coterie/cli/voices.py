"""`coterie voices`: in which voices a model speaks."""

from __future__ import annotations

import typer

from coterie.cli import options as shared
from coterie.cli.console import print_json
from coterie.errors import UnsupportedError


def command(
    model: shared.ModelArgument,
    revision: shared.RevisionOption = None,
    offline: shared.OfflineOption = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Lists the voices in which a model speaks, a line each; the first is the one that --speak takes.

    Its config.json is read, and nothing else.
    """
    from coterie.engine.source import model_directory, text_component
    from coterie.generation.speech import voices
    from coterie.hf.configs import load_config

    whole = text_component(model, revision=revision, offline=offline) is not None
    found = voices(load_config(model_directory(model, revision=revision, offline=offline))) if whole else []
    if not found:
        raise UnsupportedError(
            f"{model} does not speak.",
            advice="Whole omni models do, such as Qwen/Qwen3-Omni-30B-A3B-Instruct, and `bundled-omni` in the package.",
        )
    if as_json:
        print_json({"schema_version": 1, "model": model, "voices": found})
        return
    for name in found:
        typer.echo(name)
