"""What tests leave behind is seen."""

from __future__ import annotations

import logging
import os
import threading

import pytest
import torch

import left_behind
from coterie.quant import SCHEMES


@pytest.mark.parametrize("what", ["table", "variable", "threads", "dtype", "log", "directory"])
def test_what_is_not_put_back_is_told(what, monkeypatch, tmp_path, two_threads):
    before = left_behind.settings()
    assert left_behind.changed(before, left_behind.settings()) == []
    log = logging.getLogger("coterie")
    try:
        if what == "table":
            # As monkeypatch.delitem() puts it back: last.
            monkeypatch.setattr("coterie.quant.registry.SCHEMES", dict(reversed(SCHEMES.items())))
        elif what == "variable":
            monkeypatch.setenv("COTERIE_LEFT", "1")
        elif what == "threads":
            torch.set_num_threads(1)
        elif what == "dtype":
            torch.set_default_dtype(torch.bfloat16)
        elif what == "log":
            log.addHandler(logging.NullHandler())
        else:
            monkeypatch.chdir(tmp_path)
        (told,) = left_behind.changed(before, left_behind.settings())
    finally:
        torch.set_default_dtype(torch.float32)
        log.handlers = [one for one in log.handlers if type(one) is not logging.NullHandler]
    words = {"table": "SCHEMES", "variable": "COTERIE_LEFT", "threads": "torch's threads", "dtype": "torch's dtype"}
    assert words.get(what, what) in told


def test_a_variable_that_models_write_is_not(monkeypatch):
    before = left_behind.settings()
    for name in left_behind.OF_MODELS:
        monkeypatch.setenv(name, "7")
    assert left_behind.changed(before, left_behind.settings()) == []
    assert os.environ[left_behind.OF_MODELS[0]] == "7"


def test_threads_are_waited_for_and_those_that_go_on_are_told(monkeypatch):
    before, stop = set(threading.enumerate()), threading.Event()
    thread = threading.Thread(target=stop.wait, name="goes-on")
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(left_behind, "_PATIENCE_S", 0.01)
        assert left_behind.threads(before) == ["goes-on"]
    threading.Timer(0.05, stop.set).start()
    assert left_behind.threads(before) == []
