from checkpoint.conftest import cache, hub, publish  # noqa: F401 - fixtures
from generation.conftest import bundled, data, processors  # noqa: F401 - fixtures
