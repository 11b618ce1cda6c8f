"""Whether memory is on huge pages, as the kernel tells."""

import mmap
from pathlib import Path

import pytest

from coterie.plan.cpu import transparent_huge_pages
from coterie.plan.huge_pages import huge_page_nbytes, huge_pages_work

SMAPS = """\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Rss:                4096 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
7f0000800000-7f0000c00000 r--p 00000000 fe:00 123  /usr/lib/a b: c.so
AnonHugePages:         0 kB
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/smaps").write_text(SMAPS)
    return tmp_path


def test_mappings_of_the_range_are_added_up(root: Path) -> None:
    start, size = 0x7F0000000000, 0x400000
    assert huge_page_nbytes(start, size, root=root) == 2 << 20
    assert huge_page_nbytes(start + size, size, root=root) == 4 << 20
    assert huge_page_nbytes(start, 3 * size, root=root) == 6 << 20
    assert huge_page_nbytes(start + 2 * size, size, root=root) == 0


@pytest.mark.parametrize("content", ["", "7f0000000000-7f0000400000 rw-p\nRss: 4096 kB\n", "AnonHugePages:\n", "?"])
def test_a_kernel_that_does_not_tell(root: Path, content: str) -> None:
    (root / "proc/self/smaps").write_text(content)
    assert huge_page_nbytes(0, 2**63, root=root) is None
    assert huge_pages_work(root=root) is None


def test_no_such_file(tmp_path: Path) -> None:
    assert huge_page_nbytes(0, 2**63, root=tmp_path) is None


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux")
def test_this_machine_gives_what_it_says_it_gives() -> None:
    if transparent_huge_pages() in (None, "never"):
        assert not huge_pages_work()
    else:
        # Memory may be in too small pieces just now; then the kernel says so.
        assert huge_pages_work() in (True, False)
