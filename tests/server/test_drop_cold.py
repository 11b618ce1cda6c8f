"""A server that leaves out light experts that are not in memory says so: in answers, metrics and on the dashboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coterie.engine import load
from coterie.generation.opened import OpenModel
from server.conftest import BUNDLED, Served, chat, serving
from server.test_meters import figures

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def dropping() -> Iterator[Served]:
    model = load(BUNDLED, expert_memory="25%", drop_cold=1.0)
    with serving(OpenModel.of(model)) as served:
        yield served
    model.coterie.close()


def test_what_is_left_out_is_told_everywhere(dropping: Served) -> None:
    asked = chat(max_tokens=12, temperature=1, seed=3, coterie={"provenance": True})
    took = dropping.post(PATH, asked).json["coterie"]["provenance"]
    # With whoever is beside it, and alone: what is in memory is another's doing.
    assert (took["batching"], took["drop_cold"]) == ("fast", 1.0)
    assert took["experts_left_out"] > 0
    assert took["bytes_not_read"] == took["experts_left_out"] * 147456
    found, experts = figures(dropping), dropping.get("/coterie/state").json["experts"]
    assert found["coterie_experts_left_out_total", ()] == experts["left_out"] == took["experts_left_out"]
    assert found["coterie_expert_bytes_not_read_total", ()] == experts["bytes_not_read"] == took["bytes_not_read"]


def test_without_it_nothing_is_left_out(server: Served) -> None:
    took = server.post(PATH, chat(coterie={"provenance": True})).json["coterie"]["provenance"]
    assert (took["experts_left_out"], took["bytes_not_read"], took["batching"]) == (0, 0, "exact")
    assert "drop_cold" not in took
