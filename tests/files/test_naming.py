"""What a text means that names a model."""

from pathlib import Path

import pytest

import coterie
from coterie.errors import CheckpointNotFoundError, UsageError
from coterie.files.naming import check_name, check_new_name, resolve_path


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stores with one named ``mine``; the current directory is another one, and empty."""
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "stores" / "mine").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "stores"


def test_a_name_is_that_of_a_store(stores: Path) -> None:
    assert resolve_path("mine") == stores / "mine"
    check_name("mine")


def test_what_lies_here_comes_before_a_store_of_the_same_name(stores: Path) -> None:
    Path("mine").mkdir()
    assert resolve_path("mine") == "mine"


@pytest.mark.parametrize("path", ["./mine", "mine/", "~/mine", Path("mine"), "org/mine"])
def test_only_a_bare_text_is_a_name(stores: Path, path: str | Path) -> None:
    assert resolve_path(path) == path


def test_bundled_is_the_model_in_the_package_whatever_lies_here(stores: Path) -> None:
    Path("bundled").mkdir()
    (stores / "bundled").mkdir()
    assert resolve_path("bundled") == Path(coterie.__file__).parent / "bundled"
    assert resolve_path("./bundled") == "./bundled"


def test_bundled_omni_is_put_together_once(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(stores.parent / "cache"))
    Path("bundled-omni").mkdir()
    whole = Path(resolve_path("bundled-omni"))
    assert whole.name == "bundled-omni"
    assert whole.parents[1] == stores.parent / "cache/coterie/joined"
    assert resolve_path("./bundled-omni") == "./bundled-omni"
    before = (whole / "model.safetensors").stat()
    assert resolve_path("bundled-omni") == whole
    assert (whole / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert list((stores.parent / "cache/coterie/joined").iterdir()) == [whole.parent]


@pytest.mark.parametrize("name", ["bundled", "bundled-omni"])
def test_no_store_is_made_under_a_name_of_the_package(name: str) -> None:
    with pytest.raises(UsageError, match=f"./{name} could not be opened by this name"):
        check_new_name(name)
    check_new_name(f"other/{name}")


def test_a_prompt_without_a_model_is_told_so(stores: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="MODEL comes first"):
        check_name("And it came to pass")


@pytest.mark.parametrize("model", ["Qwen/Qwen3-30B-A3B", ".", "./there", "there", "bundled"])
def test_what_may_name_a_model_passes(stores: Path, model: str) -> None:
    Path("there").mkdir()
    check_name(model)


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("mien", "'mine'"),
        ("bundeld", "'bundled'"),
        ("bundled-omi", "'bundled-omni'"),
        ("./qwen3-cheker", "'./qwen3-checker'"),
        ("qwen3-cheker", "'qwen3-checker'"),
        ("../here/qwen3-cheker", "'../here/qwen3-checker'"),
    ],
)
def test_a_mistyped_name_is_told_what_it_may_mean(stores: Path, model: str, meant: str) -> None:
    Path("qwen3-checker").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=f"Did you mean {meant}") as caught:
        check_name(model)
    assert caught.value.got == model


@pytest.mark.parametrize("model", ["nothing-of-the-kind", "x" * 5000, "~nobody-of-this-name/x", "/no/such/place"])
def test_what_names_nothing_is_an_error(stores: Path, model: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="There is no directory") as caught:
        check_name(model)
    assert "Did you mean" not in str(caught.value)
