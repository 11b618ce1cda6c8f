"""Forward passes of several threads are told apart, and their working memory goes when they are over."""

import threading
import weakref

import pytest
import torch
from torch import nn

from coterie.native import PassMemory
from coterie.passes.clock import StepClock
from coterie.passes.current import current


class Outer(nn.Module):
    def __init__(self, seen: list[tuple[int, str]], clock: StepClock, meet: threading.Barrier) -> None:
        super().__init__()
        self.seen, self.clock, self.meet = seen, clock, meet

    def forward(self, input_ids: torch.Tensor, past_key_values: object = None) -> None:
        self.meet.wait(120)  # both passes have begun
        if isinstance(past_key_values, Cached):
            past_key_values.length += input_ids.shape[1]
        self.seen.append((self.clock.now().number, current().phase))


class Cached:
    length = 7

    def get_seq_length(self) -> int:
        return self.length


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


class Layers(nn.Module):
    def __init__(self, clock: StepClock, fail: bool) -> None:
        super().__init__()
        self.clock, self.fail = clock, fail
        self.met: list[PassMemory] = []

    def forward(self, input_ids: torch.Tensor) -> None:
        self.met = [self.clock.now().memory for _ in range(3)]
        if self.fail:
            raise RuntimeError("stop")


@pytest.mark.parametrize("fail", [False, True])
def test_layers_of_a_pass_share_memory_and_leave_none(fail: bool) -> None:
    clock = StepClock("text", [])
    module = Layers(clock, fail)
    clock.install(module)
    passes = []
    for _ in range(2):
        try:
            module(torch.zeros(1, 5, dtype=torch.int64))
        except RuntimeError:
            assert fail
        first, *others = module.met
        assert all(other is first for other in others)
        passes.append(weakref.ref(first))
        module.met.clear()
        del first, others
        assert passes[-1]() is None
