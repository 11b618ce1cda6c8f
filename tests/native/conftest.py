from __future__ import annotations

import pytest

from coterie.native import LEVELS, Library, library, why_not
from coterie.native.build import LIBRARY


@pytest.fixture(scope="session", params=LEVELS)
def native(request: pytest.FixtureRequest) -> Library:
    """The library at every level that this machine has."""
    loaded = library()
    if loaded is None:
        # One that is there and cannot be used is not skipped over in silence.
        assert not LIBRARY.exists(), why_not()
        pytest.skip(str(why_not()))
    lowered = loaded.lowered(request.param)
    if lowered.level_name != request.param:
        pytest.skip(f"this machine, or {request.param}'s variable, allows {loaded.level_name} at most")
    return lowered
