"""Forms: what browsers and clients send files with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.server.multipart import LONGEST_FIELD, MOST_PARTS, Form, boundary_of, read_form
from coterie.server.refusals import Refusal

BOUNDARY = b"xyz"


def part(name: str, data: bytes, more: str = "") -> bytes:
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


@given(st.binary(max_size=300).filter(lambda data: b"--xyz" not in data))
def test_files_come_through_as_they_are(data: bytes) -> None:
    found = read_form(form(part("model", b"m"), part("file", data, '; filename="/etc/passwd"')), BOUNDARY)
    assert found == Form(fields={"model": "m"}, files={"file": data})


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    for sent in (data, b"--xyz\r\n" + data, part("a", b"b") + data):
        with pytest.raises(Refusal) as refused:
            read_form(sent, BOUNDARY)
        assert refused.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        form(*(part(f"f{n}", b"") for n in range(MOST_PARTS + 1))),
        form(part("a", b"1"), part("a", b"2")),
        form(part("a", b"1"), part("a", b"2", '; filename="x"')),
        form(part("a", b"\xff")),
        form(part("a", b"1", "\r\n" + "\r\n".join(f"X-{n}: 1" for n in range(20)))),
        form(part("a", b"1", "\r\nX: " + "y" * 5000)),
        form(b"--xyz\r\nContent-Type: text/plain\r\n\r\nx\r\n"),
        form(b'--xyz\r\nContent-Disposition: attachment; name="a"\r\n\r\nx\r\n'),
        form(b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n"),
        part("a", b"1"),
    ],
)
def test_unsound_forms_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        read_form(data, BOUNDARY)
    assert refused.value.status == 400


def test_fields_are_short() -> None:
    with pytest.raises(Refusal) as refused:
        read_form(form(part("a", b"x" * (LONGEST_FIELD + 1))), BOUNDARY)
    assert refused.value.status == 413
    long = b"x" * (4 * LONGEST_FIELD)
    assert read_form(form(part("a", long, '; filename="x"')), BOUNDARY).files["a"] == long


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "x; boundary=" + "y" * 71])
def test_a_boundary_is_said(kind: str) -> None:
    with pytest.raises(Refusal):
        boundary_of(kind)


def test_quotes_are_no_part_of_a_boundary() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data; boundary=xyz") == BOUNDARY
