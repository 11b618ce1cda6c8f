import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging

from coterie.engine.quiet import quiet_libraries


@pytest.mark.parametrize("show_downloads", [False, True])
def test_noise_is_off_inside_and_as_before_afterwards(show_downloads) -> None:
    before = logging.is_progress_bar_enabled(), logging.get_verbosity(), are_progress_bars_disabled()
    with quiet_libraries(show_downloads=show_downloads):
        assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.ERROR
        assert are_progress_bars_disabled() is not show_downloads
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity(), are_progress_bars_disabled()) == before


def test_an_error_inside_restores_too() -> None:
    before = logging.get_verbosity()
    with pytest.raises(RuntimeError), quiet_libraries():
        raise RuntimeError
    assert logging.get_verbosity() == before
