"""Every disk that an extraction writes is looked at before."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.errors import DiskSpaceError
from coterie.extraction.target import DiskNeed, ShardDownload, check_fits, disk_needs
from coterie.store import Survey, SurveyedFile

SURVEY = Survey(
    files=(SurveyedFile(file="a", nbytes=4096, present=False), SurveyedFile(file="b", nbytes=4096, present=True)),
    base=None,
    unfinished=False,
    reclaimable=0,
)
DOWNLOADS = (ShardDownload(file="a", nbytes=300), ShardDownload(file="b", nbytes=400))
RESERVE = 2**20


def test_one_disk_is_counted_together(tmp_path: Path) -> None:
    (need,) = disk_needs(tmp_path / "store", SURVEY, DOWNLOADS, tmp_path / "not" / "yet")
    assert (need.use, need.needed) == ("store and downloads", 4796 + RESERVE)


@pytest.mark.parametrize("cache", [None, Path("/proc")])
def test_without_downloads_the_cache_is_not_written(cache: Path | None, tmp_path: Path) -> None:
    (need,) = disk_needs(tmp_path / "store", SURVEY, (), cache)
    assert (need.use, need.needed) == ("store", 4096 + RESERVE)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs another file system that is always there")
def test_two_disks_are_two_needs(tmp_path: Path) -> None:
    store, cache = disk_needs(tmp_path / "store", SURVEY, DOWNLOADS, Path("/proc"))
    assert (store.use, store.needed, store.path) == ("store", 4096 + RESERVE, tmp_path / "store")
    assert (cache.use, cache.needed, cache.path) == ("downloads", 700 + RESERVE, Path("/proc"))
    assert store.fits
    assert not cache.fits


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("store", r"The store needs 2\.00 MiB on the disk of /somewhere; .*Free 1\.00 MiB, choose another disk, or"),
        ("downloads", r"The download needs 2\.00 MiB on the disk of the Hub's cache, /somewhere; .*HF_HOME"),
        ("store and downloads", r"The store, with what is downloaded for it, needs 2\.00 MiB .*HF_HOME"),
    ],
)
def test_the_disk_that_is_too_small_is_named(use, said) -> None:
    roomy = DiskNeed(path=Path("/roomy"), use="store", needed=1, free=2)
    with pytest.raises(DiskSpaceError, match=said) as caught:
        check_fits([roomy, DiskNeed(path=Path("/somewhere"), use=use, needed=2 * 2**20, free=2**20)])
    assert (caught.value.path, caught.value.needed, caught.value.free) == (Path("/somewhere"), 2 * 2**20, 2**20)
