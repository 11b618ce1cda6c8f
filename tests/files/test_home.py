"""Where stores have names."""

from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.files.home import stores_by_name, stores_folder


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COTERIE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert stores_folder() == tmp_path / ".local/share/coterie/stores"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert stores_folder() == tmp_path / ".local/share/coterie/stores"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert stores_folder() == Path("/data/coterie/stores")
    monkeypatch.setenv("COTERIE_HOME", "~/here")
    assert stores_folder() == tmp_path / "here/stores"


def test_without_a_home_there_is_no_folder_and_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: object = None) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COTERIE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="COTERIE_HOME"):
        stores_folder()
    assert stores_by_name() == {}


def test_names_are_those_of_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path))
    assert stores_by_name() == {}
    (tmp_path / "stores" / "mine").mkdir(parents=True)
    (tmp_path / "stores" / "note.txt").touch()
    assert stores_by_name() == {"mine": tmp_path / "stores" / "mine"}
