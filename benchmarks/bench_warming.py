"""What a profile of the first half of a workload is worth on the second: warming, pinning and trust eviction.

Two things are to be had. Experts that are in memory before the first token need not be waited for; and a policy that
knows what is used much evicts better until it has learned as much by itself. Neither can be more than the text is like
the one that was recorded, so every figure is of text that was not: the first half of each text is recorded, sessions
are of the second. A session is a prompt and what follows it, from an empty cache; what follows is given, not sampled,
so all contestants compute the same. *own*: the profile's domain is the session's; *other*: it is another one, the
worst case; *all*: all domains together; *auto*: all, until the prompt shows which.

*Model*: the bundled model, five kinds of text, its experts from a source that takes some milliseconds for each. Time to
the first token is measured once at once, with nothing read early (what is warmed is then what the prompt reads
anyway, and what fits between its reads), and once after the model had been idle until all was warmed, as between two
questions.

*Replay*: recorded routing of a real model on two tasks. Here the warmed experts are there before the prompt, and what
is counted are the tokens after it. `trust` was tuned on the task law; intent was held out.

python benchmarks/bench_warming.py [--traces DIRECTORY]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report
from harness.slow_source import slow_disk

DATA = Path(__file__).resolve().parent / "data"
RESIDENCIES = (0.125, 0.25, 0.5)
PROMPT, DECODE = 48, 64
READ_MS = 2.0
TASKS = ("law", "intent")
TRACE = "deepseek-v2-lite-{}.npz"
CONTESTANTS: dict[str, dict[str, Any]] = {
    "lru, cold": {"eviction": "lru", "warm": None},
    "lru, own": {"eviction": "lru", "warm": "own"},
    "markov, cold": {"eviction": "markov", "warm": None},
    "markov, all": {"eviction": "markov", "warm": "all"},
    "markov, auto": {"eviction": "markov", "warm": "auto"},
    "markov, own": {"eviction": "markov", "warm": "own"},
    "markov, other": {"eviction": "markov", "warm": "other"},
    "markov, own, 25 % pinned": {"eviction": "markov", "warm": "own", "pin": "25%"},
    "trust, auto": {"eviction": "trust", "warm": "auto"},
    "trust, own": {"eviction": "trust", "warm": "own"},
    "trust, other": {"eviction": "trust", "warm": "other"},
}


# --- the bundled model ----------------------------------------------------------------------------------------------


def halves(tokenizer: Any, texts: Sequence[Path], tokens: int) -> dict[str, tuple[list[int], list[int]]]:
    """Domain → token ids of the first half of its text, and of the second, so many of each."""
    found = {}
    for path in texts:
        text = path.read_text(encoding="utf-8")
        ids = [
            tokenizer(part, add_special_tokens=False)["input_ids"][:tokens]
            for part in (text[: len(text) // 2], text[len(text) // 2 :])
        ]
        found[path.stem] = (ids[0], ids[1])
    return found


class Counting:
    """Counts what a model's routers choose into a recording."""

    def __init__(self, recording: Any) -> None:
        self._recording = recording
        self.group = 0

    def on_event(self, event: Any) -> None:
        """Counts routing events."""
        from coterie.spec import ExpertsSelected

        if isinstance(event, ExpertsSelected):
            self._recording.add(event.bank, event.expert_ids, event.weights, None, self.group)


def record(path: Path, texts: Mapping[str, list[int]], window: int = 256) -> None:
    """Makes a profile: one domain for each text."""
    import torch

    from coterie.engine import load
    from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts

    model = load("bundled", expert_memory="100%", component="thinker")
    banks = tuple(BankShape(bank=b.key, experts=b.num_experts, top_k=b.top_k) for b in model.coterie.expert_banks)
    run = RunFacts(
        identity=model.coterie.source.identity,
        model="bundled",
        model_class=type(model).__name__,
        tool_version="0",
        banks=banks,
    )
    with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
        counting = Counting(recording)
        model.coterie.add_observer(counting)
        for domain, ids in texts.items():
            counting.group = recording.group("text", domain, "prompt")
            for start in range(0, len(ids), window):
                with torch.inference_mode():
                    model(torch.tensor([ids[start : start + window]]), logits_to_keep=1)
                recording.mark(domain, start + window)
    model.coterie.close()


def session(memory: str, profile: Path, domain: str, other: str, ids: list[int], setup: dict[str, Any], idle: bool,
            read_ms: float) -> dict[str, float]:  # fmt: skip
    """One prompt and what follows it, from an empty cache: figures of the time to the first token and of what follows.

    Args:
        memory: Expert memory.
        profile: The profile.
        domain: The session's own.
        other: Another one.
        ids: Token ids of prompt and continuation.
        setup: Of :data:`CONTESTANTS`.
        idle: Whether the model is left alone until it has warmed all that it will.
        read_ms: Milliseconds that an expert takes.
    """
    import torch

    from coterie.engine import load
    from coterie.profiles import Usage
    from coterie.spec import DEFAULT_WARM
    from coterie.spec.opening import Opening
    from harness.kept_cache import kept_cache

    named = {"own": domain, "other": other}
    warm = named.get(setup["warm"], setup["warm"])
    with slow_disk(read_ms / 1e3):
        model = load("bundled", expert_memory=memory, component="thinker", eviction=setup["eviction"], prefetch="off",
                     profile=profile, warm=None)  # fmt: skip
    runtime = model.coterie
    cache = runtime.cache
    usage = Usage.open(profile)
    if warm is not None:
        runtime.warm_with(usage, Opening(warm=DEFAULT_WARM if warm == "all" else warm, pin=setup.get("pin")))
    if idle:
        cache.quiesce(timeout=600)
    before = cache.stats()
    if warm != "all":
        runtime.expect_request(["input_ids"])
    kept: dict[str, Any] = {}
    began = time.perf_counter()
    first_s = 0.0
    after = before
    for start in (0, *range(PROMPT, len(ids))):
        piece = ids[start : PROMPT if start == 0 else start + 1]
        with torch.inference_mode():
            out = model(torch.tensor([piece]), **kept, use_cache=True, logits_to_keep=1)
        kept = kept_cache(out)
        if start == 0:
            first_s = time.perf_counter() - began
            after = cache.stats()
    end = cache.stats()
    model.coterie.close()
    return {
        "first_s": first_s,
        "prompt_reads": after.misses - before.misses,
        "hits": end.hits - after.hits,
        "requests": end.requests - after.requests,
        "warmed": end.warmed,
        "warmed_used": end.warmed_used,
    }


def measure_model(
    report: Report, texts: Sequence[Path], sessions: int, tokens: int, read_ms: float, residencies: Sequence[float]
) -> None:
    """Sessions of the bundled model with all contestants, in turn."""
    from coterie.engine.source import open_source
    from coterie.generation.processors import Processors

    source = open_source("bundled", component="thinker")
    split = halves(Processors(source.directory).tokenizer, texts, tokens)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.db"
        record(profile, {domain: first for domain, (first, _) in split.items()})
        measure_order(report, profile, split)
        domains = list(split)
        for residency in residencies:
            results: dict[tuple[str, bool], list[dict[str, float]]] = defaultdict(list)
            for number in range(sessions):
                for place, domain in enumerate(domains):
                    start = number * (PROMPT + DECODE)
                    ids = split[domain][1][start : start + PROMPT + DECODE]
                    for name, setup in CONTESTANTS.items():
                        for idle in (False, True) if setup["warm"] is not None else (False,):
                            one = session(f"{residency:.1%}", profile, domain, domains[place - 1], ids, setup, idle,
                                          read_ms)  # fmt: skip
                            results[name, idle].append(one)
            tabulate(report, residency, results, sessions * len(domains), read_ms)


def tabulate(
    report: Report, residency: float, results: Mapping[tuple[str, bool], list[dict[str, float]]], count: int, ms: float
) -> None:
    """One residency: a row for each contestant."""
    table = report.table(
        f"Bundled model, {residency:.1%} of the experts in memory, {ms:g} ms a read; {count} sessions of {PROMPT} and "
        f"{DECODE} tokens, prefetch off:",
        ("eviction, warmed for", "idle before", "to the first token, median", "reads for the prompt",
         "hit rate after it", "warmed that were used"),
    )  # fmt: skip
    for (name, idle), rows in results.items():
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        rate = total["hits"] / total["requests"]
        used = "-" if not total["warmed"] else f"{total['warmed_used'] / total['warmed']:.0%}"
        first = statistics.median(row["first_s"] for row in rows)
        table.rows.append(
            (name, "until warm" if idle else "no", f"{first:.2f} s", f"{total['prompt_reads'] / count:.0f}",
             f"{rate:.1%}", used)
        )  # fmt: skip
        key = f"model {residency} {name} {'idle' if idle else 'at once'}"
        report.values[key] = {"hit_rate": rate, "first_s": first, "prompt_reads": total["prompt_reads"] / count}


def measure_order(report: Report, profile: Path, split: Mapping[str, tuple[list[int], list[int]]]) -> None:
    """Which measure of use says best what held-out text uses: the share of it that the first experts serve."""
    from coterie.profiles import Usage

    usage = Usage.open(profile)
    with tempfile.TemporaryDirectory() as folder:
        held_out = Path(folder) / "held-out.db"
        record(held_out, {domain: second for domain, (_, second) in split.items()})
        truth = Usage.open(held_out)
    table = report.table(
        "Share of held-out activations that the first experts of an order serve, mean of the domains:",
        ("ordered by", *(f"{residency:.1%} of the experts" for residency in RESIDENCIES)),
    )
    values = {domain: truth.expected(domain=domain).values() for domain in split}
    orders = {
        "activations of the domain": lambda domain: usage.expected(domain=domain),
        "gate mass of the domain": lambda domain: usage.expected(domain=domain, measure="gate_mass"),
        "activations of all domains": lambda domain: usage.expected(),
        "what the held-out text itself uses": lambda domain: truth.expected(domain=domain),
    }
    for name, expected in orders.items():
        shares = []
        for residency in RESIDENCIES:
            found = []
            for domain, uses in values.items():
                order = expected(domain).order(dict.fromkeys(uses, 1))
                first = order[: int(residency * len(order))]
                found.append(sum(uses[key] for key in first) / sum(uses.values()))
            shares.append(statistics.mean(found))
        table.rows.append((name, *(f"{share:.1%}" for share in shares)))
        report.values[f"order {name}"] = shares


# --- replay ---------------------------------------------------------------------------------------------------------


def sequences(path: Path) -> list[Any]:
    """Ids [tokens, layers, k] of each sequence of a plain trace."""
    with np.load(path) as arrays:
        ids, lengths = arrays["expert_ids"].astype(np.int64), arrays["sequence_lengths"]
    return np.split(ids, np.cumsum(lengths)[:-1])


def usage_of(by_domain: Mapping[str, list[Any]], experts: int) -> Any:
    """What a profile of these sequences says."""
    from coterie.profiles import BankShape, BankUsage, Usage
    from coterie.profiles.facts import Group
    from coterie.spec import BankKey

    groups = [Group("text", domain, "prompt") for domain in sorted(by_domain)]
    ids = {domain: np.concatenate(parts) for domain, parts in by_domain.items()}
    _, layers, top_k = next(iter(ids.values())).shape
    banks = {}
    for layer in range(layers):
        key = BankKey("text", layer, "mlp")
        counts = np.stack([np.bincount(ids[g.domain][:, layer].ravel(), minlength=experts) for g in groups])
        banks[key] = BankUsage(
            shape=BankShape(bank=key, experts=experts, top_k=top_k),
            tokens=np.array([len(ids[g.domain]) for g in groups]),
            activations=counts,
            gate_mass=counts.astype(float),
            reap_sum=np.zeros(counts.shape),
            reap_counts=np.zeros_like(counts),
        )
    return Usage("0" * 32, "trace", groups, banks)


def steps(ids: Any) -> Iterator[Any]:
    """What the layers need, token by token."""
    from coterie.eviction import Group
    from coterie.spec import ExpertKey

    for step, token in enumerate(ids.tolist()):
        for layer, chosen in enumerate(token):
            yield Group(step=step, layer=layer, keys=tuple(ExpertKey("text", layer, "mlp", e) for e in chosen))


def measure_replay(report: Report, traces: Path, sessions: int) -> None:
    """Both tasks, each with its own profile, the other's, and both."""
    from coterie.eviction import simulate
    from coterie.spec import BankKey

    found = {task: sequences(traces / TRACE.format(task)) for task in TASKS}
    with np.load(traces / TRACE.format(TASKS[0])) as arrays:
        experts = int(arrays["num_experts"])
    usage = usage_of({task: parts[: len(parts) // 2] for task, parts in found.items()}, experts)
    expected = {name: usage.expected(domain=name) for name in TASKS} | {"all": usage.expected()}
    for task in TASKS:
        prompt = 32
        held_out = [ids for ids in found[task][len(found[task]) // 2 :] if len(ids) > prompt + 16][:sessions]
        chosen = []
        for ids in held_out:
            counts = {
                BankKey("text", layer, "mlp"): np.bincount(ids[:prompt, layer].ravel(), minlength=experts)
                for layer in range(ids.shape[1])
            }
            chosen.append(usage.likeliest_domain(counts) or "all")
        table = report.table(
            f"Replay, DeepSeek-V2-Lite shape, {task}: {len(held_out)} held-out sequences, hit rates in % of up to "
            f"{DECODE} tokens after a prompt of {prompt}; auto takes the right domain {chosen.count(task)} times:",
            ("residency", *CONTESTANTS_OF_REPLAY),
        )
        other = next(name for name in TASKS if name != task)
        for residency in RESIDENCIES:
            capacity = int(residency * found[task][0].shape[1] * experts)
            rates = {}
            for name, (policy, warm) in CONTESTANTS_OF_REPLAY.items():
                hits = requests = 0
                for ids, choice in zip(held_out, chosen, strict=True):
                    use = expected.get({"own": task, "other": other, "auto": choice}.get(warm, warm))
                    keys = {} if use is None else use.values()
                    outcome = simulate(
                        steps(ids[prompt : prompt + DECODE]),
                        capacity,
                        policy,
                        expected=keys,
                        warm=[] if use is None else use.order(dict.fromkeys(keys, 1)),
                    )
                    hits, requests = hits + outcome.hits, requests + outcome.requests
                rates[name] = hits / requests
            table.rows.append((f"{residency:.1%}", *(f"{100 * rate:.1f}" for rate in rates.values())))
            report.values[f"replay {task} {residency}"] = rates
            report.require(
                f"{task}, {residency:.1%}: markov warmed for all domains not below cold",
                f"{100 * (rates['markov, all'] - rates['markov, cold']):+.1f} points",
                rates["markov, all"] >= rates["markov, cold"] - 0.002,
            )


CONTESTANTS_OF_REPLAY = {
    "lru, cold": ("lru", "none"),
    "lru, own": ("lru", "own"),
    "markov, cold": ("markov", "none"),
    "markov, all": ("markov", "all"),
    "markov, auto": ("markov", "auto"),
    "markov, own": ("markov", "own"),
    "markov, other": ("markov", "other"),
    "trust, all": ("trust", "all"),
    "trust, auto": ("trust", "auto"),
    "trust, own": ("trust", "own"),
    "trust, other": ("trust", "other"),
}


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--traces", type=Path, default=DATA / "traces", help="folder with both tasks (%(default)s)")
    parser.add_argument("--text", type=Path, nargs="+", default=sorted((DATA / "eval").glob("*.txt")),
                        help="files, one for each domain, which is named like the file")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=6000, help="of each half of a text (%(default)s)")
    parser.add_argument("--sessions", type=int, default=4, help="of each text (%(default)s)")
    parser.add_argument("--read-ms", type=float, default=READ_MS, help="for one expert (%(default)s)")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"coterie\.")
    report = Report("warming", "Using a profile", work=given.work_dir.parent, quick=given.quick)
    measure_replay(report, given.traces, 4 if given.quick else 24)
    texts = given.text[:2] if given.quick else given.text
    sessions, tokens = (1, 1500) if given.quick else (given.sessions, given.tokens)
    measure_model(report, texts, sessions, tokens, given.read_ms, RESIDENCIES[1:2] if given.quick else RESIDENCIES)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
