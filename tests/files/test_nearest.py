from pathlib import Path

import pytest

from coterie.files.nearest import nearest_directory


def test_the_nearest_directory_is_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert nearest_directory(tmp_path) == tmp_path
    assert nearest_directory(file) == tmp_path
    assert nearest_directory(tmp_path / "a" / "b") == tmp_path
    assert nearest_directory(Path("/no/such/place")) == Path("/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert nearest_directory(Path("a")) == nearest_directory(Path("~/a")) == tmp_path
