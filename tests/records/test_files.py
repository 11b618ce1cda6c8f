"""Open files are shared, bounded and closed."""

import errno

import pytest

from cache.sources import run_threads
from coterie.errors import CoterieError
from coterie.records.files import FileCache


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{number}.bin" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    return paths


@pytest.mark.parametrize("positioned", [True, False])
class TestFileCache:
    def test_it_reads_at_offsets_and_ends_at_the_end(self, paths, positioned):
        files = FileCache(positioned=positioned)
        buffer = bytearray(8)
        with files.reading(paths[3]) as file:
            assert file.read_at(memoryview(buffer), 96) == 4
            assert file.read_at(memoryview(buffer), 100) == 0
            assert file.size() == 100
            file.drop(0, 100)
        assert buffer[:4] == b"\x03" * 4

    def test_it_keeps_a_bounded_number_open(self, paths, positioned):
        files = FileCache(limit=2, positioned=positioned)
        for path in paths:
            with files.reading(path):
                pass
        assert files.open_count == 2
        with files.reading(paths[0]), files.reading(paths[1]), files.reading(paths[2]):
            assert files.open_count == 3
        assert files.open_count == 2

    def test_closing_closes_what_nobody_reads_and_the_rest_later(self, paths, positioned):
        files = FileCache(positioned=positioned)
        with files.reading(paths[0]) as file, files.reading(paths[1]):
            files.close()
            buffer = bytearray(1)
            assert file.read_at(memoryview(buffer), 0) == 1
            assert files.open_count == 2
        assert files.open_count == 0
        with pytest.raises(OSError, match="closed") as caught, files.reading(paths[0]):
            pass
        assert caught.value.errno == errno.EBADF
        assert not isinstance(caught.value, CoterieError)

    def test_threads_share_a_file(self, paths, positioned):
        files = FileCache(limit=1, positioned=positioned)

        def read(number):
            def run():
                for _ in range(50):
                    buffer = bytearray(10)
                    with files.reading(paths[number]) as file:
                        assert file.read_at(memoryview(buffer), 20) == 10
                    assert buffer == bytes([number]) * 10

            return run

        run_threads(*(read(number % 3) for number in range(6)))
        assert files.open_count == 1
