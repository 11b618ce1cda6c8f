"""Building: from nothing but the folder, and without harm where it cannot be done."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from coterie.native import build, library
from coterie.native.build import BuildError, compiler, fingerprint, sources
from coterie.native.library import opened

ROOT = Path(__file__).resolve().parents[2]


def has_compiler() -> bool:
    try:
        compiler()
    except BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C compiler")


@needs_compiler
def test_a_built_library_knows_its_sources_and_needs_no_openmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Installing has compiled it with all flags; to make it fast takes a compiler most of its time.
    monkeypatch.setattr(build, "_FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build._FLAGS))
    target = build.build(tmp_path / "libcoterie.so")
    assert opened(target).coterie_fingerprint().decode() == fingerprint()
    assert list(tmp_path.iterdir()) == [target]
    assert b"libgomp" not in target.read_bytes()


def test_a_compiler_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "libcoterie.so"
    target.write_bytes(b"before")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(BuildError, match=r"false .* failed"):
        build.build(target)
    monkeypatch.setenv("CC", "no-such-compiler --flag")
    with pytest.raises(BuildError, match="no-such-compiler cannot be run"):
        build.build(target)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="there is no C compiler"):
        build.build(target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_every_source_is_found() -> None:
    assert {path.name for path in sources()} >= {"threads.c", "experts.c", "matmul.c"}


@pytest.mark.parametrize("mode", ["", "require", "skip", "maybe"])
def test_the_hook_without_a_compiler(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hatchling")
    hook_class = runpy.run_path(str(ROOT / "hatch_build.py"))["NativeLibrary"]
    warned: list[str] = []

    class App:
        def display_warning(self, message: str) -> None:
            warned.append(message)

    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("COTERIE_NATIVE", mode)
    hook = hook_class(str(ROOT), {}, None, None, str(tmp_path), "wheel", App())
    build_data: dict[str, object] = {"force_include": {}, "pure_python": True}
    if mode == "require":
        with pytest.raises(Exception, match="failed"):
            hook.initialize("standard", build_data)
    elif mode == "maybe":
        with pytest.raises(ValueError, match="COTERIE_NATIVE='maybe'"):
            hook.initialize("standard", build_data)
    else:
        hook.initialize("standard", build_data)
        assert build_data == {"force_include": {}, "pure_python": True}
        assert len(warned) == (0 if mode == "skip" else 1)


def test_a_missing_or_foreign_library_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, loading = library(), sys.modules["coterie.native.library"]
    path = tmp_path / build.LIBRARY.name
    monkeypatch.setattr(loading, "LIBRARY", path)

    def reason() -> str:
        found = loading._load.__wrapped__()
        assert isinstance(found, str)
        return found

    assert "has no libcoterie" in reason()
    path.write_bytes(b"not a library")
    assert "cannot be loaded" in reason()
    if loaded is not None:
        path.unlink()
        shutil.copy(build.LIBRARY, path)
        monkeypatch.setattr(loading, "fingerprint", lambda: "other")
        assert "built from other sources" in reason()
