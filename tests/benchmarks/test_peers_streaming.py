"""The benchmark of engines that stream experts: who counts as the strongest, what is required, what is drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from harness.cgroup import CgroupRun
from harness.journal import Journal
from harness.report import Report
from peers import contest as contests
from peers import server_driver
from peers.analysis import AHEAD, COSTS, PLAIN
from peers.big_moe import BigMoe, big_moe_engines, big_moe_program, version_of
from peers.case import Case, Outcome
from peers.contest import Contest
from peers.engines import Coterie, Engine, LlamaOverHttp
from peers.sizes import QUICK, streaming_cases
from peers.streaming import BEFORE, Contestants, best_big_moe, publish_streaming, run_streaming, strongest
from peers.tables import summarise
from peers.time_per_token import Curve, time_per_token_figure

MODEL = FullSizeModel(SHAPES["tiny"])
IDLE, BUSY = streaming_cases(QUICK, 60.0)
SMALL, LARGE = "BigMoeOnEdge, 16 MB", "BigMoeOnEdge, 24 MB"

SAID = """ABCABDABE

generation: 2 tokens, 0.250 s/token (4.000 tok/s)
compute: 96.4% CPU occupancy (0.4000 cpu-s/token over 2 threads), 0.00 major faults/token
prefill: 32 tokens, 4.000 s (8.0 tok/s) | model load 12.500 s | TTFT 16.500 s
moe-stream: read 100.0 MiB (50.00 MiB/token), decode 0.250 s/token (compute 0.106 + cache mgmt 0.006 + flash I/O 0.138 \
s/token, 885 MiB/s)
moe-cache: 81.6% hit, resident 5500.0 MiB
"""


def outcome(engine: str, case: Case, tokens_per_s: float, **facts: object) -> Outcome:
    filled = {
        "expected": True, "steps_s": [1 / tokens_per_s] * 4, "first_token_s": 10.0, "seconds": 20.0, "usage": 1,
    }  # fmt: skip
    return Outcome(engine=engine, case=case.name, **filled | facts)  # type: ignore[arg-type]


@pytest.fixture
def contest(tmp_path: Path) -> Contest:
    """Two rounds: ours is three times as fast as the larger cache of the strongest peer, which is its best."""
    made = Contest(MODEL, Journal(tmp_path / "journal", resume=True))
    served = {"served": [{"layers": [(1, 1)], "new": 0}] * 4, "memory_after": 19, "capacity": 20}
    for number, slow in enumerate((1.0, 2.0)):
        parts = {"rest_s": 0.02 * slow, "experts_s": 0.01 * slow}
        own = {
            "disk": dict.fromkeys(("1", "2", "4", "8"), 1000.0), "bandwidth": 1000.0, "bandwidth_beside": 500.0 / slow,
            "alone": parts, "beside": parts, "bandwidth_new": 1000.0, "expert_bytes": 40,
        }  # fmt: skip
        for one in (
            Outcome(engine=AHEAD, case=COSTS, expected=True, own=own),
            outcome(AHEAD, IDLE, 12.0 / slow, own=dict(served)),
            outcome(PLAIN, IDLE, 8.0 / slow, own=dict(served)),
            outcome(BEFORE, IDLE, 9.0 / slow, first_token_s=12.0),
            outcome(SMALL, IDLE, 3.0 / slow),
            outcome(LARGE, IDLE, 4.0 / slow, first_token_s=30.0, own={"hit_rate": 81.6, "reads_s": 0.138}),
            outcome("llama-server", IDLE, 0.2 / slow, failure="ended after 60 s with 5 of 48 tokens"),
            outcome(AHEAD, BUSY, 7.0 / slow, own=dict(served)),
            outcome(LARGE, BUSY, 2.0 / slow),
        ):
            made.outcomes[number, one.case, one.engine] = one
    return made


def published(contest: Contest, tmp_path: Path) -> Report:
    report = Report("x", "X", work=tmp_path, quick=True)
    publish_streaming(report, contest, QUICK)
    return report


def met(report: Report) -> dict[str, bool]:
    return {verdict.requirement.partition(":")[0]: verdict.met for verdict in report.verdicts}


def test_the_best_size_of_cache_is_the_strongest_peer(contest: Contest) -> None:
    assert best_big_moe(contest, IDLE.name) == LARGE
    first = strongest(contest, QUICK)[0]
    assert (first.metric, first.case, first.peers, first.at_least) == ("decode", IDLE.name, (LARGE,), 2.5)
    contest.outcomes[1, IDLE.name, LARGE].expected = False
    contest.outcomes[0, IDLE.name, LARGE].expected = False
    assert best_big_moe(contest, IDLE.name) == SMALL


def test_what_is_required(contest: Contest, tmp_path: Path) -> None:
    report = published(contest, tmp_path)
    assert all(met(report).values()), report.verdicts
    assert {f"decode, {IDLE.name}, against {LARGE}", "first token", "decode beside a busy process"} <= set(met(report))
    assert {verdict.measured for verdict in report.verdicts} >= {"3.00 ×", "0.83", "0.58", "95% (95% … 95%)"}


@pytest.mark.parametrize(
    ("engine", "case", "facts", "fails"),
    [
        (AHEAD, BUSY, {"steps_s": [0.5] * 4}, "decode beside a busy process"),
        (AHEAD, IDLE, {"first_token_s": 13.0}, "first token"),
        (AHEAD, IDLE, {"steps_s": [0.3] * 4}, f"decode, {IDLE.name}, against {LARGE}"),
        (AHEAD, IDLE, {"steps_s": [0.3] * 4}, f"time per token against full overlap, {IDLE.name}"),
    ],
)
def test_what_is_not_met_is_said(
    contest: Contest, tmp_path: Path, engine: str, case: Case, facts: dict[str, object], fails: str
) -> None:
    for number in (0, 1):
        for name, value in facts.items():
            setattr(contest.outcomes[number, case.name, engine], name, value)
    assert not met(published(contest, tmp_path))[fails]


def test_memory_that_is_not_there_is_said(contest: Contest, tmp_path: Path) -> None:
    for number in (0, 1):
        contest.outcomes[number, IDLE.name, AHEAD].own["memory_after"] = 13
    last = next(one for one in published(contest, tmp_path).verdicts if one.requirement.startswith("expert memory"))
    assert (last.measured, last.met) == ("65% (65% … 65%)", False)


def test_who_was_left_out_is_said(contest: Contest, tmp_path: Path) -> None:
    assert "left out" not in published(contest, tmp_path).tables[0].caption
    for key in [key for key in contest.outcomes if key[2] in (SMALL, LARGE)]:
        del contest.outcomes[key]
    report = published(contest, tmp_path)
    assert "BigMoeOnEdge was left out" in report.tables[0].caption
    assert strongest(contest, QUICK) == []
    assert not [name for name in met(report) if "BigMoeOnEdge" in name]


def test_the_front_page_names_the_peer(contest: Contest) -> None:
    table = summarise([(contest, strongest(contest, QUICK))], AHEAD, "Small:", "strongest peer")
    assert table.columns == ("", "Coterie", "strongest peer", "ratio")
    assert table.rows[0] == (f"decode, {IDLE.name}", "9.00 tok/s", f"3.00 tok/s ({LARGE})", "3 ×")
    assert table.rows[2] == (f"first token, {IDLE.name}", "10.0 s", f"30.0 s ({LARGE})", "3 ×")


def test_everyone_has_a_turn_and_the_best_one_beside_the_busy_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, float]] = []

    def measure(engine: Engine, case: Case, model: FullSizeModel) -> Outcome:
        asked.append((case.name, engine.name, case.timeout_s))
        return outcome(engine.name, case, 5.0 if engine.name == SMALL else 2.0)

    monkeypatch.setattr(contests, "measure", measure)
    store, gguf = tmp_path / "store", tmp_path / "gguf"
    who = Contestants(
        ours=Coterie(store, 2),
        before=None,
        big_moe=big_moe_engines(tmp_path, gguf, 2, (16, 24), overlap=False),
        server=LlamaOverHttp(tmp_path, gguf, 2),
    )
    run_streaming(Contest(MODEL, Journal(tmp_path / "journal", resume=False)), QUICK, who, 2, 60.0, 9.0)
    idle = [name for case, name, _ in asked if case == IDLE.name]
    assert idle[:5] == [AHEAD, PLAIN, SMALL, LARGE, "llama-server"]
    assert idle[5:] == [*idle[1:5], idle[0]]
    assert [name for case, name, _ in asked if case == BUSY.name][:3] == [AHEAD, SMALL, "llama-server"]
    assert {(name == "llama-server", seconds) for _, name, seconds in asked} == {(True, 9.0), (False, 60.0)}
    assert (IDLE.busy, BUSY.busy) == (False, True)


class TestBigMoe:
    def test_its_own_account_is_read(self) -> None:
        found = outcome("x", IDLE, 1.0)
        BigMoe(Path("bmoe-cli"), Path("m.gguf"), 2, 5500).report(CgroupRun(limit=None, stdout=SAID), found)
        assert found.prefill_tokens_per_s == 8.0
        assert found.own == {
            "prefill_s": 4.0,
            "prompt_tokens": 32.0,
            "load_s": 12.5,
            "compute_s": 0.106,
            "reads_s": 0.138,
            "hit_rate": 81.6,
            "resident_mib": 5500.0,
        }

    def test_how_it_is_started(self, tmp_path: Path) -> None:
        plain, _, overlapped, _ = big_moe_engines(tmp_path, tmp_path, 2, (5500, 16), overlap=True)
        with plain.started(IDLE, "abc") as (command, _):
            assert command[command.index("--cache-mb") + 1] == "5500"
            assert command[command.index("--io-threads") + 1] == "4"
            assert not {"--force-cache", "--overlap"} & set(command)
        with BigMoe(tmp_path, tmp_path, 2, 16).started(IDLE, "abc") as (command, _):
            assert "--force-cache" in command
        with overlapped.started(IDLE, "abc") as (command, _):
            assert "--overlap" in command
        assert (plain.name, overlapped.name) == ("BigMoeOnEdge, 5500 MB", "BigMoeOnEdge, 5500 MB, overlap")

    def test_its_program_is_found(self, tmp_path: Path) -> None:
        program = tmp_path / "build" / "cli" / "bmoe-cli"
        program.parent.mkdir(parents=True)
        with pytest.raises(SystemExit, match="no bmoe-cli in"):
            big_moe_program(tmp_path)
        program.write_text("#!/bin/sh\necho 0.19.0\n")
        with pytest.raises(SystemExit, match="does not run"):
            version_of(program)
        program.chmod(0o755)
        assert big_moe_program(tmp_path) == big_moe_program(program) == program
        assert version_of(program) == "0.19.0"


def test_a_server_is_asked_by_a_process_that_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "server.py"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import http.server, json, sys\n"
        "class Answer(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "    def do_POST(self):\n"
        "        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))\n"
        "        self.send_response(200); self.end_headers()\n"
        "        for text in (asked['prompt'], 'DEF'):\n"
        "            said = json.dumps({'choices': [{'text': text}]})\n"
        "            self.wfile.write(f'data: {said}\\n\\n'.encode())\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "http.server.HTTPServer(('127.0.0.1', port), Answer).serve_forever()\n"
    )
    fake.chmod(0o755)
    engine = LlamaOverHttp(fake, tmp_path / "m.gguf", 2)
    with engine.started(IDLE, "ABC") as (command, environment):
        assert "PYTHONPATH" in environment
        monkeypatch.setattr(sys, "argv", ["server_driver", *command[3:]])
        assert server_driver.main() == 0
        found = outcome("x", IDLE, 1.0)
        engine.report(CgroupRun(limit=None), found)
    assert capfd.readouterr().out == "ABCDEF"
    assert found.own["prompt_tokens"] == IDLE.prompt_tokens
    assert found.prefill_tokens_per_s


def test_the_figure_has_every_engine_and_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = time_per_token_figure(
        {"idle": [Curve("a", [0.1, 0.0, 0.2]), Curve("b", [0.3])], "busy": [Curve("b", [0.4])]}
    )
    text = drawn.decode()
    assert all(f">{word}</text>" in text for word in ("a", "b", "idle", "busy", "ms"))
    report = Report("x", "X", work=tmp_path, quick=True)
    report.figure("x_tokens", "Times", lambda: drawn)
    assert "![Times](x_tokens.svg)" in report._markdown({})
