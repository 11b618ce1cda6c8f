import pytest

from coterie.errors import UsageError
from coterie.spec import parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("8g", 8 << 30),
        ("1G", 1 << 30),
        ("512m", 1 << 29),
        ("1048576", 1 << 20),
        (7, 7),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


def test_a_forgotten_unit_is_asked_for() -> None:
    with pytest.raises(UsageError, match="Did you mean '8GiB'"):
        parse_bytes("8")


@pytest.mark.parametrize("text", ["8QB", "-1", "", "GiB", "0", 0, -5, True, 1.5, b"8GiB"])
def test_what_is_no_size_is_wrong_usage(text: object) -> None:
    with pytest.raises(UsageError, match="memory"):
        parse_bytes(text, what="memory")  # type: ignore[arg-type]
