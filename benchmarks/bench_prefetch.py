"""Reading what the next layer will probably ask for: how often that is right, and what it saves.

While a layer's experts are computed the disk has nothing to do, and while they are read the processor has not. Reading
the next layer's experts early lets the two overlap: at best a step takes the longer of the two instead of their sum, so
there is most to be had where they are equally long, and nothing where either is all there is. A wrong prediction costs
the disk one read, which the next demand may have to wait for; an expert that is predicted right but late costs nothing.

*Predictions*: the bundled model generates from prompts; every layer's router input is kept, and ways of predicting are
compared with what the routers chose: how many of a layer's experts are among the predicted, and, replayed with a global
LRU at several capacities, how many of the misses, and how many of the predicted that were not in memory were right. The
first layer of a step is never predicted, so 1/8 of this model's experts and misses cannot be.

*Time*: one process has the model open three times, with ``prefetch`` off, on and auto; they take a few decode steps
each in turn, along the same text (what a small model writes by itself soon repeats itself, and then nothing is
missing), and must give the same likeliest tokens. The bundled model's experts come from a source that takes some
milliseconds for each, because on a disk they would be there at once; the generated layers of a 30B model are read from
the disk past the page cache. Their weights are random, so their routers know nothing: what they would do with each
other's input says little about a trained model, and the predictions' quality is printed with the times.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness.machine import load_average, wait_until_quiet
from harness.models import LARGE, MEDIUM, generated_store
from harness.options import options
from harness.page_cache import drop
from harness.paired import interleave
from harness.report import Report
from harness.slow_source import slow_disk

MODES = ("off", "on", "auto")
CAPACITIES = (0.125, 0.25, 0.5)
SLOW = (("25%", 4.0), ("12.5%", 4.0), ("50%", 4.0), ("25%", 1.0))
"""Memory, and milliseconds that a read of the bundled model's experts takes."""
SETTLE = 112
"""Steps before measuring begins, in which ``auto`` has tried both ways."""
PROMPTS = (
    "A library keeps far more books than its reading room has seats for. Most stay in the stacks.",
    "def average(values):\n    total = 0\n    for value in values:\n",
    "Am Morgen ging sie zum Markt und kaufte Brot, Käse und",
    "User: What is the largest planet?\nAssistant:",
)


TEXT = Path(__file__).resolve().parent / "data" / "eval" / "prose.txt"


class Following:
    """Decode steps along given tokens.

    Args:
        model: The model.
        ids: Token ids [1, T].
        prompt: How many of them are its prompt.

    Attributes:
        likeliest: The token that the model found likeliest after each step.
    """

    def __init__(self, model: Any, ids: Any, prompt: int) -> None:
        self._model = model
        self._ids = ids
        self._at = 0
        self._kept: dict[str, Any] = {}
        self.likeliest: list[int] = []
        self._step(prompt)

    def steps(self, count: int) -> float:
        """Takes so many steps; returns seconds per step."""
        began = time.perf_counter()
        for _ in range(count):
            self._step(1)
        return (time.perf_counter() - began) / count

    def _step(self, tokens: int) -> None:
        import torch

        from harness.kept_cache import kept_cache

        ids = self._ids[:, self._at : self._at + tokens]
        with torch.inference_mode():
            out = self._model(ids, **self._kept, use_cache=True, logits_to_keep=1)
        self._kept = kept_cache(out)
        self._at += tokens
        self.likeliest.append(int(out.logits[0, -1].argmax()))


def record_inputs(model: Any, tokenizer: Any, tokens: int) -> list[tuple[list[Any], list[Any]]]:
    """For each prompt: by layer the router's inputs [tokens, H] and chosen ids [tokens, K] of the decode steps."""
    import torch

    from coterie.bench import generate
    from coterie.routing import find_router

    routers = [find_router(model.get_submodule(b.router_block)).module for b in model.coterie.expert_banks]
    runs = []
    for prompt in PROMPTS:
        inputs: list[list[Any]] = [[] for _ in routers]
        chosen: list[list[Any]] = [[] for _ in routers]

        def keep(_: Any, args: Any, out: Any, n: int, inputs: Any = inputs, chosen: Any = chosen) -> None:
            inputs[n].append(args[0].reshape(-1, args[0].shape[-1]).clone().float())
            chosen[n].append(next(o for o in out if not o.is_floating_point()).clone())

        hooks = [router.register_forward_hook(partial(keep, n=n)) for n, router in enumerate(routers)]
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        generate(model, ids, tokens, seed=1)
        for hook in hooks:
            hook.remove()
        runs.append(([torch.cat(x) for x in inputs], [torch.cat(x) for x in chosen]))
    return runs


def drifted(before: Any, after: Any) -> Any:
    """The input of the layer before, with the running mean of how much this layer's differs; as the model does it."""
    import torch

    drift = torch.zeros(before.shape[1])
    rows = []
    for t in range(before.shape[0]):
        rows.append(before[t] + drift)
        if t % 4 == 0:
            drift = torch.lerp(drift, after[t] - before[t], 0.2)
    return torch.stack(rows)


def ways(model: Any) -> dict[str, Callable[[list[Any], int], Any]]:
    """Ways of predicting: name → function of the inputs and a layer, giving what its router is applied to."""
    import torch

    norms = [model.get_submodule(b.router_block.rpartition(".")[0]).post_attention_layernorm
             for b in model.coterie.expert_banks]  # fmt: skip

    def own_norm(x: list[Any], n: int) -> Any:
        return x[n - 1] / norms[n - 1].weight.float() * norms[n].weight.float()

    return {
        "input of the layer before": lambda x, n: x[n - 1],
        "the same under this layer's norm": own_norm,
        "input of the layer before + mean difference": lambda x, n: drifted(x[n - 1], x[n]),
        "input two layers before + mean difference": lambda x, n: drifted(x[n - 2], x[n]) if n > 1 else torch.zeros(0),
    }


def predictions(report: Report, quick: bool) -> None:
    """Compares ways of predicting on the bundled model."""
    from coterie.engine import load
    from coterie.generation.opened import OpenModel
    from coterie.routing import find_router

    model = load("bundled", expert_memory="100%", prefetch="off")
    runs = record_inputs(model, OpenModel.of(model).processors.tokenizer, 48 if quick else 256)
    weights = [find_router(model.get_submodule(b.router_block)).module.weight.float()
               for b in model.coterie.expert_banks]  # fmt: skip
    top_k = runs[0][1][0].shape[1]
    table = report.table(
        f"Share of a layer's {top_k} experts that are among the predicted, {len(runs)} generations:",
        (
            "the router is applied to",
            *(f"best {top_k + m} predicted" for m in (0, 2, 4)),
            f"worst layer and text, best {top_k}",
        ),
    )
    best: dict[str, list[list[Any]]] = {}
    for name, make in ways(model).items():
        found: dict[tuple[int, int], list[float]] = {}
        best[name] = []
        for inputs, chosen in runs:
            layers: list[Any] = [None]
            for n in range(1, len(weights)):
                x = make(inputs, n)
                layers.append((x @ weights[n].T).topk(top_k + 4, dim=-1).indices if len(x) else None)
                for m in (0, 2, 4):
                    if layers[n] is not None:
                        hit = (chosen[n].unsqueeze(-1) == layers[n][:, None, : top_k + m]).any(-1)
                        found.setdefault((m, n), []).append(float(hit.float().mean()))
            best[name].append(layers)
        mean = {m: [sum(v) / len(v) for (k, _), v in found.items() if k == m] for m in (0, 2, 4)}
        columns = [f"{100 * sum(v) / len(v):.1f} %" for v in mean.values()]
        table.rows.append((name, *columns, f"{100 * min(mean[0]):.1f} %"))
        report.values[f"recall: {name}"] = {m: sum(v) / len(v) for m, v in mean.items()}
    name = "input of the layer before + mean difference"
    table = report.table(
        f"Of {name}, with a global LRU:",
        ("residency", "hit rate", "predicted", "misses that were predicted", "predicted and not in memory: right"),
    )
    for capacity in CAPACITIES:
        for extra in (0, 2):
            hits, requests, caught, made, right = replay(runs, best[name], len(weights), capacity, top_k + extra)
            table.rows.append(
                (f"{100 * capacity:.1f} %", f"{100 * hits / requests:.1f} %", f"best {top_k + extra}",
                 f"{100 * caught / (requests - hits):.1f} %", f"{100 * right / made:.1f} %")
            )  # fmt: skip
    model.coterie.close()


def replay(runs: Any, predicted: Any, layers: int, capacity: float, width: int) -> tuple[int, int, int, int, int]:
    """Hits, requests, misses that were predicted, predictions not in memory, and how many of these were right."""
    room = int(capacity * layers * 32)
    resident: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = requests = caught = made = right = 0
    for (_, chosen), ahead in zip(runs, predicted, strict=True):
        for t in range(chosen[0].shape[0]):
            for n in range(layers):
                wanted = chosen[n][t].tolist()
                prediction = [] if ahead[n] is None else ahead[n][t, :width].tolist()
                absent = [e for e in prediction if (n, e) not in resident]
                made += len(absent)
                right += sum(e in wanted for e in absent)
                caught += sum(e in wanted for e in absent)
                for expert in wanted:
                    requests += 1
                    hits += (n, expert) in resident
                    resident[n, expert] = None
                    resident.move_to_end((n, expert))
                    if len(resident) > room:
                        resident.popitem(last=False)
    return hits, requests, caught, made, right


def times(
    report: Report, path: str, memory: str, rounds: int, steps: int, slow_ms: float | None, **load_options: Any
) -> dict[str, float]:
    """Decode steps with and without prefetch, in turn; returns the medians."""
    import torch

    from coterie.engine import load
    from coterie.generation.opened import OpenModel

    with slow_disk(None if slow_ms is None else slow_ms / 1e3):
        models = {mode: load(path, expert_memory=memory, prefetch=mode, **load_options) for mode in MODES}
    length = 32 + SETTLE + rounds * steps
    if path == "bundled":
        tokenizer = OpenModel.of(models["off"]).processors.tokenizer
        ids = torch.tensor([tokenizer(TEXT.read_text(encoding="utf-8")[: 8 * length])["input_ids"][:length]])
    else:
        ids = torch.randint(16, 200, (1, length), generator=torch.Generator().manual_seed(0))
    decodings = {mode: Following(model, ids, 32) for mode, model in models.items()}
    for decoding in decodings.values():
        decoding.steps(SETTLE)  # the cache fills, and "auto" makes up its mind
    before = {mode: model.coterie.stats() for mode, model in models.items()}
    timings = interleave({mode: partial(one.steps, steps) for mode, one in decodings.items()}, rounds)
    if len({tuple(decoding.likeliest) for decoding in decodings.values()}) > 1:
        raise SystemExit("Prefetch changed the tokens.")
    what = f"experts in {slow_ms:g} ms each" if slow_ms is not None else "experts from the disk"
    table = report.table(
        f"{Path(path).name}, {memory} of the experts in memory, {what}; {rounds} interleaved rounds of {steps} tokens, "
        f"load average {load_average():.1f}:",
        ("prefetch", "ms/token, median", "quartiles", "of off", "hit rate", "waiting", "issued/token", "used",
         "in time", "at the end"),
    )  # fmt: skip
    for mode, model in models.items():
        old, new = before[mode], model.coterie.stats()
        taken = rounds * steps
        requested = new.total.decode_requested - old.total.decode_requested
        rate = 1 - (new.total.misses - old.total.misses) / requested
        issued = new.prefetch_issued - old.prefetch_issued
        used, in_time = (getattr(new, n) - getattr(old, n) for n in ("prefetch_used", "prefetch_in_time"))
        low, high = timings.spread(mode)
        wait = (new.total.wait_s - old.total.wait_s) / (timings.median(mode) * taken)
        table.rows.append(
            (mode, f"{1e3 * timings.median(mode):.1f}", f"{1e3 * low:.1f} … {1e3 * high:.1f}",
             f"{timings.ratio(mode, 'off'):.2f}", f"{100 * rate:.1f} %", f"{100 * wait:.0f} %", f"{issued / taken:.1f}",
             f"{100 * used / issued:.0f} %" if issued else "–", f"{100 * in_time / issued:.0f} %" if issued else "–",
             ", ".join(new.prefetch_verdicts.values()) or "–")
        )  # fmt: skip
        model.coterie.close()
    ratios = {mode: timings.ratio(mode, "off") for mode in MODES}
    report.values[f"{Path(path).name} {memory} {what}"] = {"ratios": ratios, "rounds": timings.rounds}
    return ratios


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="for compute")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    import torch

    warnings.filterwarnings("ignore", "The experts have")
    wait_until_quiet(given.wait_quiet)
    report = Report("prefetch", "Reading the next layer's experts early", work=given.work_dir.parent, quick=given.quick)
    torch.set_num_threads(given.threads)
    predictions(report, given.quick)
    rounds, steps = (3, 4) if given.quick else (given.rounds, 8)
    ratios = []
    for memory, slow_ms in SLOW[:1] if given.quick else SLOW:
        ratios.append(times(report, "bundled", memory, rounds, steps, slow_ms))
    path = generated_store(given.work_dir, MEDIUM if given.quick else LARGE).resolve()
    drop([path])
    ratios.append(times(report, str(path), "37%", rounds, 4, None, max_context=4096))
    worst = max(r["auto"] for r in ratios)
    report.require("auto is never more than 5 % slower than off", f"{worst:.2f}", worst <= 1.05)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
