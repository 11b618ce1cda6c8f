from checkpoint.conftest import cache, hub, publish, waits  # noqa: F401 - fixtures
