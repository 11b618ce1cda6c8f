"""The texts that come with the package, for whoever has none: of many kinds and languages."""

from __future__ import annotations

from pathlib import Path

from coterie.survey import Material, gather

FOLDER = Path(__file__).with_name("texts")
"""One directory for each domain; its README says what they are, and whose."""


def default_texts() -> list[Material]:
    """Texts of eight domains: prose, documentation, code, structured data, dialogue, Chinese, German, other languages.

    Together about 380 kB, some 100,000 tokens. None of them is used to measure quality in this project. They are
    texts alone: for a model that hears or sees, add sounds and pictures with :func:`coterie.survey.gather`.
    """
    domains = sorted(folder for folder in FOLDER.iterdir() if folder.is_dir())
    return [one for folder in domains for one in gather("text", folder.name, folder)]
