"""One token's experts by one call: the bits of the kernel, only where all are there, and never while one leaves."""

from __future__ import annotations

import ctypes
import threading
import time
from itertools import accumulate

import pytest
import torch

from coterie.errors import UsageError
from coterie.native import (
    SCHEME_CODES,
    STAGES,
    Addresses,
    LayerShape,
    Library,
    Places,
    StageTimes,
    TokenExperts,
    TokenState,
)

from .test_experts import GROUPS, MIXED, make

BF16 = torch.bfloat16
SCHEMES = ["int3", "int4", "int8", MIXED, GROUPS]
EXPERTS, TOP_K, WIDTH, INNER = 9, 4, 192, 96


class Bank:
    """Experts whose records are in one tensor each."""

    def __init__(self, native: Library, scheme: str) -> None:
        layer = make(native, scheme, experts=EXPERTS, width=WIDTH, inner=INNER)
        self.kernel = layer.kernel
        self.matrices = list(zip(layer.gate_ups, layer.downs, strict=True))
        self.records: list[torch.Tensor] = []
        places: list[Places] = []
        for pair in self.matrices:
            fields = [field.contiguous().view(-1).view(torch.uint8) for one in pair for field in one.fields]
            ends = list(accumulate(field.numel() for field in fields))
            starts, split = [0, *ends[:-1]], len(pair[0].fields)
            up, down = (SCHEME_CODES[one.scheme] for one in pair)
            places.append((up, starts[0], starts[split - 1], down, starts[split], starts[-1]))
            self.records.append(torch.cat(fields))
        self.addresses = Addresses(native, EXPERTS)
        self.experts = TokenExperts(self.kernel, self.addresses, places)

    def fill(self, *experts: int) -> None:
        for expert in experts:
            self.addresses.publish(expert, self.records[expert].data_ptr())

    def wanted(self, state: TokenState) -> torch.Tensor:
        results = state.results
        going = self.kernel.begin(results.normed, results.ids, results.weights)
        located = [
            self.kernel.locate(e, *((one.scheme, one.fields) for one in self.matrices[e])) for e in going.experts
        ]
        return results.residual + going.finish(located)


def token_state_of(ids: list[int], seed: int = 0) -> TokenState:
    """As a layer leaves it."""
    generator = torch.Generator().manual_seed(seed)
    state = TokenState(LayerShape(WIDTH, 2, 1, 64, EXPERTS, len(ids)))
    state.make_results()
    state.call.threads = torch.get_num_threads()
    results = state.results
    results.ids[0] = torch.tensor(ids)
    results.weights[0] = torch.rand(len(ids), generator=generator)
    for values in (results.normed, results.residual):
        values.copy_(torch.randn(WIDTH, generator=generator))
    return state


@pytest.mark.parametrize("ids", [[3], [5, 0, 8, 2], list(range(9)), [8, 7, 6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_are_those_of_the_kernel(scheme: str, ids: list[int], native: Library) -> None:
    bank, state = Bank(native, scheme), token_state_of(ids)
    bank.fill(*ids)
    want = bank.wanted(state)
    assert bank.experts.there(state)
    for threads in (1, 2, 5):
        state.call.threads = threads
        got = bank.experts.compute(state)
        assert got is not None
        assert got.shape == (1, 1, WIDTH)
        assert torch.equal(got, want)


def test_nothing_is_computed_unless_all_are_there(native: Library) -> None:
    bank, state = Bank(native, "int4"), token_state_of([5, 0, 8, 2])
    before = state.results.out.clone()
    bank.fill(5, 0, 2)
    assert not bank.experts.there(state)
    assert bank.experts.compute(state) is None
    bank.fill(8)
    bank.addresses.withdraw(2)
    assert bank.experts.compute(state) is None
    assert torch.equal(state.results.out.view(torch.int16), before.view(torch.int16))
    assert [bank.addresses[e] != 0 for e in (0, 2, 5, 8)] == [True, False, True, True]
    # And nobody is left inside: nothing waits.
    for expert in (0, 5, 8):
        bank.addresses.withdraw(expert)


@pytest.mark.parametrize("ids", [[3, 3], [0, EXPERTS], [-1, 2]])
def test_odd_choices_are_left_to_others(ids: list[int], native: Library) -> None:
    bank, state = Bank(native, "int4"), token_state_of(ids)
    bank.fill(*range(EXPERTS))
    assert bank.experts.compute(state) is None
    for expert in range(EXPERTS):
        bank.addresses.withdraw(expert)


def test_it_is_timed_where_asked(native: Library) -> None:
    bank, state, times = Bank(native, "int4"), token_state_of([1, 2]), StageTimes()
    state.call.times = ctypes.addressof(times)
    bank.fill(1)
    assert bank.experts.compute(state) is None
    assert times.with_experts == 0
    bank.fill(2)
    assert bank.experts.compute(state) is not None
    assert times.with_experts == 1
    assert times.passes == 0
    assert times.seconds[STAGES.index("experts")] == sum(times.seconds) > 0


def test_who_leaves_waits_for_who_computes(native: Library) -> None:
    """Records are overwritten as soon as they may be: whoever computes must not see it."""
    bank, ids = Bank(native, "int4"), [1, 4, 6]
    bank.fill(*ids)
    state = token_state_of(ids)
    want = bank.wanted(state)
    good = {expert: bank.records[expert].clone() for expert in ids}
    over, failures = threading.Event(), []

    def overwrite() -> None:
        while not over.is_set():
            for expert in ids:
                bank.addresses.withdraw(expert)
                bank.records[expert].fill_(255)
                bank.records[expert].copy_(good[expert])
                bank.fill(expert)

    thread = threading.Thread(target=overwrite)
    thread.start()
    computed, end = 0, time.monotonic() + 20
    try:
        while computed < 300 and time.monotonic() < end:
            got = bank.experts.compute(state)
            if got is not None:
                computed += 1
                if not torch.equal(got, want):
                    failures.append(computed)
    finally:
        over.set()
        thread.join()
    assert computed
    assert failures == []


def test_a_place_that_is_none_is_refused(native: Library) -> None:
    addresses = Addresses(native, 3)
    for expert in (-1, 3):
        with pytest.raises(IndexError):
            addresses.publish(expert, 64)
        with pytest.raises(IndexError):
            addresses.withdraw(expert)


def test_addresses_of_another_bank_are_refused(native: Library) -> None:
    bank = Bank(native, "int4")
    with pytest.raises(UsageError, match="5 addresses for 9 experts"):
        TokenExperts(bank.kernel, Addresses(native, 5), [(2, 0, 64, 2, 128, 192)] * EXPERTS)
