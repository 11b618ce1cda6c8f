"""``--video`` and ``/video``."""

import io
import json
import sys

import pytest

from films import write_film

pytest.importorskip("av")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4", tone=440.0, frames=30)


def test_generate_shows_a_video(coterie, film):
    asked = ("generate", "bundled", "--video", str(film), "--video-pixels", "1024", "-n", "2", "--greedy", "--json")
    heard = json.loads(coterie(*asked).out)
    seen = json.loads(coterie(*asked, "--no-video-sound", "--video-frames", "6").out)
    assert heard["prompt_tokens"] > 24 + 20
    assert seen["prompt_tokens"] == 36 + 2


def test_what_cannot_be_shown_is_told(coterie, film, tmp_path):
    outcome = coterie("generate", "bundled", "--video", str(film), "--video-fps", "1", "--video-frames", "2")
    assert outcome.code == 2
    assert "by a rate or a number, not both" in outcome.err
    (tmp_path / "a.mp4").write_bytes(film.read_bytes()[:400])
    outcome = coterie("generate", "bundled", "--video", str(tmp_path / "a.mp4"))
    assert outcome.code == 1
    assert "a.mp4 cannot be read" in outcome.err


def test_chat_shows_videos(coterie, film, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/video {film}\n\n/video /nowhere\n/quit\n"))
    outcome = coterie("chat", "bundled", "--video-pixels", "1024", "-n", "2")
    assert "a.mp4 goes with your next message" in outcome.err
    assert "There is no file '/nowhere'" in outcome.err
