"""The harness of the peers' benchmark: what is read off a run, how rounds become ratios, how the ideal is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import text_of
from harness.cgroup import CgroupRun, why_unavailable
from harness.journal import Journal
from harness.raw_disk import raw_bandwidth, raw_bandwidth_to_new_memory
from harness.report import Report
from harness.streamed import Piece, StreamedRun, run_streamed
from peers import contest as contests
from peers.analysis import AHEAD, COSTS, PLAIN, publish_beside_ideal
from peers.case import Case, Outcome, outcome_of
from peers.contest import Contest
from peers.engines import Coterie, LlamaCpp, Transformers
from peers.ideal import Costs, Served, ideal_step
from peers.llama_build import _HALF_A_CONFIGURATION, _TILES, _WHOLE_CONFIGURATION, _patch
from peers.sizes import QUICK, contest_cases, roomy_case
from peers.tables import Requirement, case_table, require_budgets, require_ratios

MIB = 1 << 20
REASON = why_unavailable()
MODEL = FullSizeModel(SHAPES["tiny"])
CASE = Case(name="start", limit=None, prompt_tokens=4, new_tokens=6, settle_tokens=2)

needs_cgroup = pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}")


def run_of(ids: list[int], *, step: float = 0.5, **facts: object) -> StreamedRun:
    pieces = [Piece(2.0 + step * number, text_of(token), 100 * number) for number, token in enumerate(ids)]
    return StreamedRun(limit=None, pieces=pieces, **facts)  # type: ignore[arg-type]


class TestOutcome:
    WALK = MODEL.walk.tokens(4, 6)

    def test_of_a_whole_run(self) -> None:
        outcome = outcome_of("x", CASE, run_of(self.WALK), self.WALK)
        assert not outcome.failure
        assert outcome.expected
        assert outcome.first_token_s == 2.0
        assert outcome.steps_s == [0.5, 0.5, 0.5]
        assert outcome.decode_tokens_per_s == 2.0
        assert outcome.bytes_per_token == 100

    def test_texts_may_come_in_any_pieces(self) -> None:
        text = "".join(map(text_of, self.WALK))
        pieces = [Piece(1.0, "\n" + text[:4], 0), Piece(2.0, text[4:9], 0), Piece(3.0, text[9:] + "\n\n", 0)]
        arrivals = StreamedRun(limit=None, pieces=pieces).arrivals(3)
        assert [piece.at_s for piece in arrivals] == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
        assert "".join(piece.text for piece in arrivals) == text

    def test_other_tokens_are_noticed(self) -> None:
        wrong = [*self.WALK[:3], self.WALK[4], *self.WALK[4:]]
        assert not outcome_of("x", CASE, run_of(wrong), self.WALK).expected
        garbage = run_of(self.WALK)
        garbage.pieces[0] = Piece(0.0, "é![", 0)
        assert not outcome_of("x", CASE, garbage, self.WALK).expected

    def test_an_engine_may_echo_the_prompt_and_end_with_figures(self) -> None:
        run = run_of(self.WALK)
        prompt = "".join(map(text_of, MODEL.walk.tokens(0, 4)))
        run.pieces = [Piece(0.1, prompt, 0), *run.pieces, Piece(9.0, "\n\ngeneration: 6 tokens, 0.5 s/token\n", 0)]
        outcome = outcome_of("x", CASE, run, self.WALK, echoes=True)
        assert (outcome.failure, outcome.expected, outcome.first_token_s) == ("", True, 2.0)
        assert outcome.steps_s == [0.5, 0.5, 0.5]
        assert not outcome_of("x", CASE, run, self.WALK).expected

    def test_a_run_that_took_too_long_has_the_figures_of_its_steps(self) -> None:
        outcome = outcome_of("x", CASE, run_of(self.WALK[:3], timed_out=True, returncode=-9), self.WALK)
        assert outcome.failure == "ended after 600 s with 3 of 6 tokens"
        assert outcome.expected
        assert outcome.steps_s == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("facts", "failure"),
        [
            ({"oom_kills": 1, "returncode": -9}, "killed for memory"),
            ({"returncode": 3, "stderr": "much\nno such model\n"}, "ended with 3: no such model"),
            ({}, "gave 2 of 6 tokens"),
        ],
    )
    def test_failures_are_told_apart(self, facts: dict[str, object], failure: str) -> None:
        assert outcome_of("x", CASE, run_of(self.WALK[:2], **facts), self.WALK).failure == failure


@needs_cgroup
class TestStreamedRun:
    def test_pieces_come_when_they_are_printed(self) -> None:
        program = "import time\nfor text in ('abc', 'def'):\n    print(text, end='', flush=True)\n    time.sleep(0.3)"
        run = run_streamed([sys.executable, "-c", program], 200 * MIB, timeout_s=60)
        assert run.returncode == 0
        first, second = run.arrivals(3)
        assert (first.text, second.text) == ("abc", "def")
        assert second.at_s - first.at_s > 0.2
        assert run.resident > MIB
        assert run.usage > 0

    def test_what_a_process_reads_from_disk_is_counted(self, tmp_path: Path) -> None:
        file = tmp_path / "data"
        file.write_bytes(bytes(4 * MIB))
        program = (
            "import mmap, os, sys\n"
            "os.sync()\n"
            "file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
            "os.preadv(file, [mmap.mmap(-1, 4 << 20)], 0)\n"
            "print('abc', flush=True)\n"
        )
        run = run_streamed([sys.executable, "-c", program, file], None, timeout_s=60)
        if "Invalid argument" in run.stderr:
            pytest.skip("the file system of the temporary directory has no direct reads")
        assert run.returncode == 0, run.stderr
        assert run.read_bytes >= 4 * MIB
        assert run.pieces[0].read_bytes >= 4 * MIB

    def test_what_a_child_reads_is_counted_too(self, tmp_path: Path) -> None:
        file = tmp_path / "data"
        file.write_bytes(bytes(4 * MIB))
        child = (
            "import mmap, os, sys, time\n"
            "os.sync()\n"
            "file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
            "os.preadv(file, [mmap.mmap(-1, 4 << 20)], 0)\n"
            "print('abc', flush=True)\n"
            "time.sleep(1)\n"
        )
        program = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
        run = run_streamed([sys.executable, "-c", program, child, file], None, timeout_s=60)
        if "Invalid argument" in run.stderr:
            pytest.skip("the file system of the temporary directory has no direct reads")
        assert run.pieces[0].read_bytes >= 4 * MIB

    def test_too_long_a_run_is_ended(self) -> None:
        program = "import time; print('abc', flush=True); time.sleep(600)"
        run = run_streamed([sys.executable, "-c", program], None, timeout_s=3)
        assert run.timed_out
        assert run.returncode == -9
        assert run.stdout == "abc\n"

    def test_a_kill_for_memory_is_noticed(self) -> None:
        run = run_streamed([sys.executable, "-c", "bytearray(200 << 20)"], 100 * MIB, timeout_s=60)
        assert run.killed
        assert not run.timed_out
        assert run.oom_kills >= 1


class Script:
    """An engine that does not run."""

    echoes = False

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        yield [], {}

    def report(self, run: CgroupRun, outcome: Outcome) -> None:
        pass


def outcome(engine: str, tokens_per_s: float, **facts: object) -> Outcome:
    filled = {"expected": True, "steps_s": [1 / tokens_per_s] * 4, "first_token_s": 10.0, "resident": 5 * MIB} | facts
    return Outcome(engine=engine, case="start", **filled)  # type: ignore[arg-type]


class TestContest:
    def filled(self, tmp_path: Path) -> Contest:
        contest = Contest(MODEL, Journal(tmp_path / "journal", resume=True))
        for number, (ours, theirs, other) in enumerate([(8.0, 2.0, 1.0), (9.0, 3.0, 1.0), (20.0, 2.0, 4.0)]):
            for engine, speed in (("ours", ours), ("theirs", theirs), ("other", other)):
                contest.outcomes[number, "start", engine] = outcome(engine, speed)
        return contest

    def test_a_ratio_is_the_median_of_the_rounds_against_the_best(self, tmp_path: Path) -> None:
        contest = self.filled(tmp_path)
        assert contest.ratio("decode", "start", "ours", ["theirs"]) == pytest.approx(4.0)
        assert contest.ratio("decode", "start", "ours", ["theirs", "other"]) == pytest.approx(4.0)
        assert contest.ratio("decode", "start", "ours", ["other"]) == pytest.approx(8.0)
        assert contest.ratio("first token", "start", "ours", ["theirs"]) == pytest.approx(1.0)
        assert contest.ratio("decode", "another", "ours", ["theirs"]) is None

    def test_what_did_not_run_counts_as_nothing(self, tmp_path: Path) -> None:
        contest = self.filled(tmp_path)
        for number in range(3):
            contest.outcomes[number, "start", "theirs"] = outcome("theirs", 1.0, steps_s=[])
        assert contest.ratio("decode", "start", "ours", ["theirs"]) == float("inf")
        for number in range(3):
            contest.outcomes[number, "start", "ours"] = outcome("ours", 50.0, expected=False)
        assert contest.ratio("decode", "start", "ours", ["other"]) == 0.0

    def test_outcomes_survive_an_interruption(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def measure(engine: Script, case: Case, model: FullSizeModel) -> Outcome:
            asked.append(engine.name)
            return outcome(engine.name, 2.0)

        monkeypatch.setattr(contests, "measure", measure)
        engines = [Script("a"), Script("b")]
        first = Contest(MODEL, Journal(tmp_path / "journal", resume=True))
        first.run(CASE, engines, 0)
        first.run(CASE, engines, 1)
        assert asked == ["a", "b", "b", "a"]
        second = Contest(MODEL, Journal(tmp_path / "journal", resume=True))
        second.run(CASE, engines, 1)
        assert len(asked) == 4
        assert second.outcomes == first.outcomes

    def test_requirements_are_met_or_not(self, tmp_path: Path) -> None:
        contest = self.filled(tmp_path)
        report = Report("x", "X", work=tmp_path, quick=True)
        wanted = [Requirement("start", "decode", ("theirs",), 3.5), Requirement("start", "decode", ("theirs",), 4.5)]
        require_ratios(report, contest, [*wanted, Requirement("never run", "decode", ("theirs",), 1.0)], "ours")
        assert [verdict.met for verdict in report.verdicts] == [True, False]
        assert report.verdicts[0].measured == "4.00 ×"

    def test_budgets_are_kept_or_not(self, tmp_path: Path) -> None:
        contest = self.filled(tmp_path)
        contest.outcomes[1, "start", "ours"].oom_kills = 1
        report = Report("x", "X", work=tmp_path, quick=True)
        require_budgets(report, contest, {"start": 4 * MIB}, "ours")
        assert [verdict.met for verdict in report.verdicts] == [False, False]
        report.verdicts.clear()
        contest.outcomes[1, "start", "ours"].oom_kills = 0
        require_budgets(report, contest, {"start": 6 * MIB}, "ours")
        assert [verdict.met for verdict in report.verdicts] == [True, True]
        case_table(report, contest, "start", ("decode",), "Start:")
        assert [row[0] for row in report.tables[0].rows] == ["ours", "theirs", "other"]
        assert report.tables[0].rows[0][1] == "9.00 (8.00 … 20.00)"


class TestEngines:
    def test_llama_report_is_read(self, tmp_path: Path) -> None:
        stderr = (
            "0.05.74 I common_perf_print:        load time =     450.00 ms\n"
            "0.05.74 I common_perf_print: prompt eval time =    1200.00 ms /    32 tokens (   37.53 ms per token)\n"
            "0.05.74 I common_perf_print:        eval time =    4400.00 ms /    23 runs   (  192.56 ms per token)\n"
        )
        llama = LlamaCpp(Path("llama"), tmp_path / "m.gguf", 2, repacked=False)
        found = outcome("x", 1.0)
        llama.report(CgroupRun(limit=None, stderr=stderr), found)
        assert found.prefill_tokens_per_s == pytest.approx(32 / 1.2)
        assert found.own == {
            "prefill_s": 1.2,
            "prefill_tokens": 32,
            "decode_s": 4.4,
            "decode_tokens": 23,
            "load_s": 0.45,
        }

    def test_modes_of_llama(self, tmp_path: Path) -> None:
        warm = Case(name="warm", limit=None, prompt_tokens=4, new_tokens=6, settle_tokens=0, warm=True)
        with LlamaCpp(Path("llama"), tmp_path / "m", 2, repacked=True).started(warm, "abc") as (command, _):
            assert "--no-repack" not in command
            assert "--no-warmup" not in command
        with LlamaCpp(Path("llama"), tmp_path / "m", 2, repacked=False).started(CASE, "abc") as (command, _):
            assert command[command.index("--load-mode") + 1] == "mmap"
            assert {"--no-repack", "--no-warmup"} <= set(command)

    def test_budgets_are_handed_on(self, tmp_path: Path) -> None:
        case = Case(name="x", limit=9, budget=8, prompt_tokens=4, new_tokens=6, settle_tokens=0)
        for engine in (Coterie(tmp_path, 2), Transformers(tmp_path, 2, offload=tmp_path)):
            with engine.started(case, "abc") as (command, environment):
                assert command[command.index("--memory") + 1] == "8"
                assert "PYTHONPATH" in environment

    def test_the_tile_configuration_is_mended_once(self, tmp_path: Path) -> None:
        file = tmp_path / _TILES
        file.parent.mkdir(parents=True)
        file.write_text(f"{{\n{_HALF_A_CONFIGURATION}}}\n")
        _patch(tmp_path)
        _patch(tmp_path)
        assert file.read_text() == f"{{\n{_WHOLE_CONFIGURATION}}}\n"


class TestIdeal:
    # A read takes 2 s, one into new memory 5 s, an expert 1 s, the rest 4 s.
    COSTS = Costs(rest_s=4.0, expert_s=1.0, expert_bytes=20, bandwidth=10.0, new_bandwidth=4.0)

    def test_reads_hide_behind_hits_of_their_layer(self) -> None:
        served = [Served(layers=[(3, 1), (1, 2)], new=0), Served(layers=[(4, 0), (3, 0)], new=9)]
        ideal = ideal_step(served, self.COSTS)
        assert ideal.layered == ((4 + 3 + 4) + (4 + 4 + 3)) / 2
        assert ideal.foreseen == ((4 + 7) + (4 + 7)) / 2

    def test_where_the_disk_bounds_both(self) -> None:
        ideal = ideal_step(
            [Served(layers=[(0, 8)], new=0)],
            Costs(rest_s=1.0, expert_s=0.1, expert_bytes=10, bandwidth=1.0, new_bandwidth=1.0),
        )
        assert ideal.layered == 81.0
        assert ideal.foreseen == 80.0

    def test_the_first_misses_take_what_room_there_is_in_new_memory(self) -> None:
        step = Served(layers=[(3, 1), (1, 3)], new=2)
        assert (step.misses, step.uses, step.into_new_memory) == (4, 8, 2)
        ideal = ideal_step([step], self.COSTS)
        assert ideal.layered == 4 + 5 + (5 + 2 + 2)
        assert ideal.foreseen == 5 + 5 + 2 + 2


class TestBesideTheIdeal:
    """Two rounds, the second on a machine of half the speed: what is compared is of the same round."""

    def contest(self, tmp_path: Path, step_s: float, new: int = 0) -> Contest:
        contest = Contest(MODEL, Journal(tmp_path / "journal", resume=True))
        case, roomy = roomy_case(QUICK, 60.0)
        for number, slow in enumerate((1.0, 2.0)):
            parts = {"rest_s": 0.1 * slow, "experts_s": 0.04 * slow}
            own = {
                "disk": dict.fromkeys(("1", "2", "4", "8"), 100.0 / slow), "bandwidth": 100.0 / slow,
                "bandwidth_beside": 50.0 / slow, "alone": parts, "beside": {**parts, "experts_s": 0.08 * slow},
                "bandwidth_new": 25.0 / slow, "expert_bytes": 10,
            }  # fmt: skip
            # Two layers of two experts, the second reads one: rest .1, then .02, then max(.1, .01); .4 to new memory.
            first = {"layers": [(9, 9), (9, 9)], "new": 9}
            ours = {"served": [first, {"layers": [(2, 0), (1, 1)], "new": new}]}
            ahead = {"served": [first, {"layers": [(2, 0), (2, 0)], "new": new}]}
            for name, engine, engine_own, seconds in (
                (COSTS, AHEAD, own, 1.0),
                (case, AHEAD, ahead, step_s * slow),
                (case, PLAIN, ours, 0.5 * slow),
                (roomy.name, AHEAD, ahead, 0.5 * step_s * slow),
            ):
                contest.outcomes[number, name, engine] = Outcome(
                    engine=engine, case=name, expected=True, steps_s=[seconds], own=engine_own
                )
        return contest

    @pytest.mark.parametrize(("step_s", "met"), [(0.25, True), (0.4, False)])
    def test_steps_are_compared_with_the_costs_of_their_round(self, tmp_path: Path, step_s: float, met: bool) -> None:
        report = Report("x", "X", work=tmp_path, quick=True)
        case = next(one for one, _ in contest_cases(QUICK, 60.0) if one.name == roomy_case(QUICK, 60.0)[0])
        publish_beside_ideal(report, self.contest(tmp_path, step_s), QUICK, [case])
        ahead, plain = report.tables[-1].rows
        # What prefetch has read is no miss any more, but the ideal reads it.
        assert (ahead[2], plain[2]) == ("0.0", "1.0")
        assert (ahead[3], plain[3]) == ("0.0", "0.0")
        # Full overlap leads: reads and arithmetic as fast as they are while the other goes on, .2 and .1 + .08.
        assert ahead[5] == plain[5] == "300.0 (200.0 … 400.0)"
        assert (ahead[6], plain[6]) == (f"{step_s / 0.2:.2f}", f"{0.5 / 0.2:.2f}")
        assert ahead[8] == f"{step_s / 0.34:.2f}"
        assert ahead[9] == "210.0 (140.0 … 280.0)"
        assert ahead[10] == "330.0 (220.0 … 440.0)"
        assert (ahead[11], plain[11]) == (f"{step_s / 0.22:.2f}", f"{0.5 / 0.22:.2f}")
        assert ahead[12] == ahead[11]
        assert [verdict.met for verdict in report.verdicts] == [met, met, False]
        assert report.verdicts[2].measured == "0.50"

    def test_reads_to_new_memory_take_what_they_take(self, tmp_path: Path) -> None:
        report = Report("x", "X", work=tmp_path, quick=True)
        case = next(one for one, _ in contest_cases(QUICK, 60.0) if one.name == roomy_case(QUICK, 60.0)[0])
        publish_beside_ideal(report, self.contest(tmp_path, 0.4, new=5), QUICK, [case])
        ahead, _ = report.tables[-1].rows
        assert ahead[3] == "1.0"
        assert ahead[5] == "600.0 (400.0 … 800.0)"
        assert ahead[10] == "780.0 (520.0 … 1040.0)"
        assert (ahead[11], ahead[12]) == (f"{0.4 / 0.52:.2f}", f"{0.4 / 0.22:.2f}")
        assert [verdict.met for verdict in report.verdicts] == [True, True, False]


def test_the_benchmark_itself_keeps_torch_out_of_the_page_cache() -> None:
    # Libraries that a process has mapped stay in the page cache, and a start that finds them there is not cold.
    benchmarks = Path(contests.__file__).resolve().parent.parent
    program = "import sys, bench_peers, peers.routing; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=benchmarks, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0


def test_raw_bandwidth_is_what_was_read(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(8 * MIB))
    try:
        found = raw_bandwidth(file, MIB, depth=2, seconds=0.05)
    except OSError as error:
        pytest.skip(f"no direct reads here: {error.strerror}")
    assert found > MIB
    with raw_bandwidth_to_new_memory(file, MIB, depth=2, nbytes=16 * MIB) as new:
        assert new > MIB
