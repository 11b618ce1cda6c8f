"""Forward passes of several threads are told apart."""

import threading

import torch
from torch import nn

from coterie.integration.clock import StepClock


class Outer(nn.Module):
    def __init__(self, seen: list[tuple[int, str]], clock: StepClock, meet: threading.Barrier) -> None:
        super().__init__()
        self.seen, self.clock, self.meet = seen, clock, meet

    def forward(self, input_ids: torch.Tensor, past_key_values: object = None) -> None:
        self.meet.wait(120)  # both passes have begun
        self.seen.append((self.clock.step, self.clock.phase))


class Cached:
    def get_seq_length(self) -> int:
        return 7


def test_two_threads_have_their_own_step_and_phase() -> None:
    clock, meet = StepClock("text", []), threading.Barrier(2)
    seen: dict[str, list[tuple[int, str]]] = {"prefill": [], "decode": []}
    modules = {name: Outer(seen[name], clock, meet) for name in seen}
    for module in modules.values():
        clock.install(module)

    def run(name: str) -> None:
        for _ in range(20):
            if name == "prefill":
                modules[name](torch.zeros(1, 5, dtype=torch.int64))
            else:
                modules[name](torch.zeros(2, 1, dtype=torch.int64), past_key_values=Cached())

    threads = [threading.Thread(target=run, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {phase for _, phase in seen["prefill"]} == {"prefill"}
    assert {phase for _, phase in seen["decode"]} == {"decode"}
    assert sorted(step for passes in seen.values() for step, _ in passes) == list(range(40))
    assert clock.tokens == {"prefill": 100, "decode": 40}
