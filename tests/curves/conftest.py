from pathlib import Path

import pytest

from evaluate.conftest import partial, words  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def recorded(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of two domains, of which each has words of its own."""
    from coterie.engine import load
    from coterie.survey import gather, survey

    folder = tmp_path_factory.mktemp("recorded")
    for domain, first in (("code", 3), ("prose", 40)):
        (folder / f"{domain}.txt").write_text(" ".join(f"w{first + 7 * n % 30}" for n in range(400)))
    model = load(readable, expert_memory="100%")
    try:
        material = [one for domain in ("code", "prose") for one in gather("text", domain, folder / f"{domain}.txt")]
        survey(model, folder / "profile.db", material, context=32)
    finally:
        model.coterie.close()
    return folder / "profile.db"
