"""Texts that a small model reads, and a store that was fitted."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coterie.survey import Material, gather
from zoo.sizes import TEXT_IDS


def text(folder: Path, domain: str, documents: int = 20) -> Path:
    """A text of documents, each domain with words of its own."""
    draw, first = random.Random(domain), 3 if domain == "code" else TEXT_IDS // 2
    last = first + TEXT_IDS // 2 - 4
    path = folder / f"{domain}.txt"
    words = (" ".join(f"w{draw.randint(first, last)}" for _ in range(40)) for _ in range(documents))
    path.write_text("\n\n".join(words), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, ...]:
    """Texts of two domains."""
    folder = tmp_path_factory.mktemp("material")
    return tuple(one for domain in ("code", "prose") for one in gather("text", domain, text(folder, domain)))


@pytest.fixture(scope="session")
def request_of(material):
    """Makes a request: ``request_of(bits=3.5, ...)``."""
    from coterie.fitting import FitRequest

    def make(**others) -> FitRequest:
        usual = {
            "memory": "8GiB",
            "context": 64,
            "bits": 3.2,
            "calibration_tokens": 600,
            "limit": 200,
            "measure": False,
        }
        return FitRequest(**(usual | {"material": material} | others))

    return make


@dataclass(frozen=True)
class Fitted:
    model: Path
    store: Path
    work: Path
    request: object
    fit: object
    told: list


@pytest.fixture(scope="session")
def fitted(readable: Path, request_of, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A store that was fitted, with its work beside it; nobody changes it."""
    from coterie.fitting import fit

    store, request, told = tmp_path_factory.mktemp("fitted") / "store", request_of(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(readable, store, request, keep_work=True, progress=told.append)
    return Fitted(readable, store, store.with_name("store.work"), request, found, told)


@pytest.fixture(autouse=True)
def _no_advice() -> Iterator[None]:
    """So small a profile, and so little memory for experts, are warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In some layer, an expert was chosen")
        warnings.filterwarnings("ignore", "The experts have")
        yield
