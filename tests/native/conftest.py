from __future__ import annotations

import pytest

from coterie.native import LEVELS, Library, library, why_not


@pytest.fixture(scope="session", params=LEVELS)
def native(request: pytest.FixtureRequest) -> Library:
    """The library at every level that this machine has."""
    loaded = library()
    if loaded is None:
        pytest.skip(str(why_not()))
    lowered = loaded.lowered(request.param)
    if lowered.level_name != request.param:
        pytest.skip(f"this machine, or {request.param}'s variable, allows {loaded.level_name} at most")
    return lowered
