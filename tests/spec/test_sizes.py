import pytest

from coterie.errors import UsageError
from coterie.spec import parse_bytes


@pytest.mark.parametrize(
    ("text", "count"), [("8GiB", 8 << 30), ("8GB", 8 * 10**9), ("1.5 MiB", 3 << 19), ("512", 512), (7, 7)]
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["8QB", "-1", "", "GiB", "0", 0, -5, True, 1.5, b"8GiB"])
def test_what_is_no_size_is_wrong_usage(text: object) -> None:
    with pytest.raises(UsageError, match="memory"):
        parse_bytes(text, what="memory")  # type: ignore[arg-type]
