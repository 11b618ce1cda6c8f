"""A file that others read is replaced whole, or not at all."""

from __future__ import annotations

import pytest

from coterie.files.replacing import replacing


def test_a_file_takes_its_place(tmp_path):
    with replacing(tmp_path / "stats.json") as partial:
        partial.write_text("new")
        assert not (tmp_path / "stats.json").exists()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("stats.json", "new")]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_survives_an_error(error, tmp_path):
    (tmp_path / "stats.json").write_text("old")

    def write():
        with replacing(tmp_path / "stats.json") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("stats.json", "old")]
