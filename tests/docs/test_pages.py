"""What the pages tell people to type exists."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from coterie.cli import app
from coterie.cli.commands import COMMANDS, build
from coterie.cli.option_names import _ARGUMENTS, _OTHERS

from .pages import CLIENTS, PAGES, ROOT, coterie_arguments

ENTRIES = {entry.name: entry for entry in COMMANDS}
PLACEHOLDER = re.compile(r"[A-Z][A-Z_ ]*|…|\.\.\.")


def check(arguments: list[str]) -> None:
    """Finds the command, and every option in it."""
    root = get_command(app)
    words = list(arguments)
    while words and words[0].startswith("-"):
        assert any(words[0] in parameter.opts for parameter in root.params) or words[0] in ("--help", "-h"), words[0]
        words.pop(0)
    if not words or PLACEHOLDER.fullmatch(words[0]):
        return
    assert words[0] in ENTRIES, f"no command {words[0]}"
    command: Any = build(ENTRIES[words.pop(0)])
    while getattr(command, "commands", None) and words and not PLACEHOLDER.fullmatch(words[0]):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"no subcommand {words[0]}"
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    # What other programs call them is understood, too.
    options |= {theirs for theirs, ours in _OTHERS.items() if ours in options} | set(_ARGUMENTS)
    for word in words:
        name = word.partition("=")[0].rstrip(",.:;")
        if re.fullmatch(r"--?[a-z][a-z-]*", name):
            assert name in options | {"--help", "-h"}, f"no option {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    for arguments in coterie_arguments(page.read_text()):
        try:
            check(arguments)
        except AssertionError as error:
            pytest.fail(f"{page.name}: coterie {' '.join(arguments)}: {error}")


def test_a_command_or_option_that_does_not_exist_is_seen() -> None:
    for arguments in (["server"], ["generate", "m", "--nope"], ["profile", "records", "m"], ["--verbose", "demo"]):
        with pytest.raises(AssertionError):
            check(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = page if not path else (page.parent / path)
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found.read_text()), f"{page.name}: {target}"


def anchors(page: str) -> set[str]:
    """The names under which a page's headings are linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_of_a_client_is_listed() -> None:
    listed = (ROOT / "docs" / "clients.md").read_text()
    assert CLIENTS
    assert {page.name for page in CLIENTS if f"(clients/{page.name})" not in listed} == set()


def test_every_page_is_listed() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in names if f"({name})" not in index and f"({name}#" not in index} == set()
