"""Tokens of several sequences at once: each has the bits that it has alone, at every level and on any threads."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from coterie.errors import UsageError
from coterie.native import (
    MOST_ROWS,
    SCHEMES,
    KeyValueRoom,
    Library,
    NativeLayer,
    PackedMatrix,
    Results,
    TokenState,
    TokenStates,
    route,
)

from . import test_layer, test_token_experts
from .matrices import activations, random_matrix, with_threads
from .test_layer import Case, Token, normal, parts_of, token_of
from .test_token_experts import EXPERTS, WIDTH, Bank

ROWS = [2, 3, 4, 8, MOST_ROWS]
LENGTHS = [1, 40, 7, 300, 2, 64, 65, 16, 1, 33, 128, 5, 90, 3, 17, 250]

INT8 = Case(160, 6, 2, 80, 6, 3, ("int8", "int8", "int8", "int8"))
CASES = [test_layer.SMALL, *test_layer.CASES[2:], INT8, *test_layer.BLOCKS]


class Step(NamedTuple):
    """The next token of each of some sequences, of different lengths."""

    tokens: list[Token]
    lengths: list[int]

    @classmethod
    def of(cls, case: Case, rows: int) -> Step:
        return cls([token_of(case, LENGTHS[row], seed=10 * row) for row in range(rows)], LENGTHS[:rows])

    @property
    def hidden(self) -> torch.Tensor:
        return torch.cat([token.hidden for token in self.tokens])

    @property
    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([token.cosine for token in self.tokens]), torch.cat([token.sine for token in self.tokens])

    @property
    def rooms(self) -> list[KeyValueRoom]:
        found: list[KeyValueRoom] = []
        for token, length in zip(self.tokens, self.lengths, strict=True):
            found += KeyValueRoom.of(token.keys[:, :, :length], token.values[:, :, :length])
        return found

    def together(self, layer: NativeLayer) -> Results:
        """All at once, into the caches."""
        hidden = self.hidden  # stays until the layer is over
        state = layer.take(hidden, *self.angles)
        results = layer.compute(state, self.rooms)
        layer.release(state)
        return results


def row_of(results: Results, row: int) -> list[torch.Tensor]:
    return [tensor[row : row + 1] for tensor in results[:-3] if tensor.numel()]


def assert_equal(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert [tensor.shape for tensor in got] == [tensor.shape for tensor in want]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("case", CASES)
def test_a_layer_gives_each_row_what_it_gives_it_alone(case: Case, rows: int, native: Library) -> None:
    layer = NativeLayer(native, parts_of(case, native), TokenStates())
    alone, together = Step.of(case, rows), Step.of(case, rows)
    want = [
        row_of(Step([token], [length]).together(layer), 0)
        for token, length in zip(alone.tokens, alone.lengths, strict=True)
    ]
    results = together.together(layer)
    for row in range(rows):
        assert_equal(row_of(results, row), want[row])
        # And the token is in its own cache, where nothing else has changed.
        assert_equal([together.tokens[row].keys], [alone.tokens[row].keys])
        assert_equal([together.tokens[row].values], [alone.tokens[row].values])
    assert len({tuple(hidden.flatten().tolist()) for hidden in results.residual}) == rows


def test_a_wide_layer_gives_each_row_what_it_gives_it_alone(native: Library) -> None:
    layer = NativeLayer(native, parts_of(test_layer.WIDE, native), TokenStates())
    step = Step.of(test_layer.WIDE, 5)
    results = step.together(layer)
    for row, (token, length) in enumerate(zip(*step, strict=True)):
        assert_equal(row_of(results, row), row_of(Step([token], [length]).together(layer), 0))


@pytest.mark.parametrize("rows", [3, MOST_ROWS])
def test_halves_with_a_cache_that_takes_keys_itself(rows: int, native: Library) -> None:
    case, length = test_layer.SMALL, 21
    layer = NativeLayer(native, parts_of(case, native), TokenStates())
    tokens = [token_of(case, length, seed=row) for row in range(rows)]
    step = Step(tokens, [length] * rows)
    hidden = step.hidden
    state = layer.take(hidden, *step.angles)
    begun = layer.begin(state)
    keys, values = (torch.cat([getattr(token, name) for token in tokens]) for name in ("keys", "values"))
    keys[:, :, length - 1 : length], values[:, :, length - 1 : length] = begun.key, begun.value
    results = layer.finish(state, KeyValueRoom.of(keys[:, :, :length], values[:, :, :length]))
    layer.release(state)
    for row, token in enumerate(tokens):
        assert_equal(row_of(results, row), test_layer.passed(layer, token, length))


def test_rows_at_one_position_need_one_rotation(native: Library) -> None:
    case = test_layer.SMALL
    layer, step = NativeLayer(native, parts_of(case, native), TokenStates()), Step.of(case, 4)
    cosine, sine = (part[:1].contiguous() for part in step.angles)
    hidden, found = step.hidden, []
    for angles in ((cosine, sine), (cosine.repeat(4, 1, 1), sine.repeat(4, 1, 1))):
        state = layer.take(hidden, *angles)
        results = layer.compute(state, step.rooms)
        layer.release(state)
        found.append([tensor.clone() for tensor in row_of(results, 3)])
    assert_equal(*found)


@pytest.mark.parametrize("rows", [2, 7, MOST_ROWS])
def test_threads_change_nothing(rows: int, native: Library) -> None:
    case, found = INT8, []
    layer = NativeLayer(native, parts_of(case, native), TokenStates())
    for threads in (1, 2, 3, 5):
        with_threads(threads, lambda: found.append(Step.of(case, rows).together(layer)))
    for other in found[1:]:
        for row in range(rows):
            assert_equal(row_of(other, row), row_of(found[0], row))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 160), (37, 544), (131, 4096), (33, 12288)], ids=str)
def test_products_of_a_row_are_those_of_it_alone(shape: tuple[int, int], scheme: str, native: Library) -> None:
    matrix, x = PackedMatrix(native, *random_matrix(scheme, *shape)), activations(MOST_ROWS, shape[1])
    want = torch.cat([matrix(row[None]) for row in x])
    for rows in range(1, MOST_ROWS + 1):
        assert torch.equal(matrix(x[:rows], rows=True), want[:rows])


def test_choices_of_a_row_are_those_of_it_alone(native: Library) -> None:
    x, weight = activations(MOST_ROWS, 100), activations(21, 100, seed=4)
    want = [torch.cat(parts) for parts in zip(*(route(native, row[None], weight, 4, normalise=True) for row in x),
                                              strict=True)]  # fmt: skip
    assert_equal(list(route(native, x, weight, 4, normalise=True)), want)


def token_state_of(choices: torch.Tensor, seed: int = 0) -> TokenState:
    """As a layer leaves it, with these choices."""
    rows, top_k = choices.shape
    generator = torch.Generator().manual_seed(seed)
    state = TokenState(test_token_experts.LayerShape(WIDTH, 2, 1, 64, EXPERTS, top_k), rows)
    state.make_results()
    state.call.threads = torch.get_num_threads()
    results = state.results
    results.ids.copy_(choices)
    results.weights.copy_(torch.rand(rows, top_k, generator=generator))
    for values in (results.normed, results.residual):
        values.copy_(torch.randn(rows, WIDTH, generator=generator).view_as(values))
    return state


def alone(state: TokenState, row: int) -> TokenState:
    one = token_state_of(state.results.ids[row : row + 1])
    for name in ("weights", "normed", "residual"):
        getattr(one.results, name).copy_(getattr(state.results, name)[row : row + 1])
    return one


def choices_of(rows: int, top_k: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, EXPERTS, generator=torch.Generator().manual_seed(seed)).topk(top_k).indices


@pytest.mark.parametrize("top_k", [1, 4, EXPERTS])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scheme", test_token_experts.SCHEMES)
def test_experts_give_each_row_what_they_give_it_alone(scheme: str, rows: int, top_k: int, native: Library) -> None:
    bank, state = Bank(native, scheme), token_state_of(choices_of(rows, top_k))
    bank.fill(*state.results.ids.unique().tolist())
    assert bank.experts.there(state)
    for threads in (1, 3):
        state.call.threads = threads
        state.results.norms.fill_(-1)
        got = bank.experts.compute(state, norms=True)
        assert got is not None
        assert got.shape == (rows, 1, WIDTH)
        for row in range(rows):
            one = alone(state, row)
            assert torch.equal(got[row : row + 1], bank.experts.compute(one, norms=True))
            assert torch.equal(state.results.norms[row : row + 1], one.results.norms)


def test_one_expert_that_is_not_there_leaves_all_rows_to_others(native: Library) -> None:
    bank, state = Bank(native, "int4"), token_state_of(torch.tensor([[0, 1], [1, 2], [3, 0]]))
    bank.fill(0, 1, 2)
    assert not bank.experts.there(state)
    assert bank.experts.compute(state) is None
    bank.fill(3)
    assert bank.experts.compute(state) is not None
    # Nobody is left inside: nothing waits.
    for expert in range(4):
        bank.addresses.withdraw(expert)


@pytest.mark.parametrize("odd", [[2, 2], [0, EXPERTS], [-1, 2]])
def test_odd_choices_of_one_row_leave_all_to_others(odd: list[int], native: Library) -> None:
    bank, state = Bank(native, "int4"), token_state_of(torch.tensor([[0, 1], odd]))
    bank.fill(*range(EXPERTS))
    assert bank.experts.compute(state) is None


def test_more_rows_than_are_served_are_refused(native: Library) -> None:
    case = test_layer.SMALL
    layer, many = NativeLayer(native, parts_of(case, native), TokenStates()), MOST_ROWS + 1
    angles = normal(many, 1, case.head, seed=1)
    with pytest.raises(UsageError, match=f"1 to {MOST_ROWS} rows at once, not {many}"):
        layer.take(normal(many, 1, case.width, seed=2), angles, angles)


def test_rows_take_turns_with_single_tokens_in_the_same_memory(native: Library) -> None:
    case, states = test_layer.SMALL, TokenStates()
    layer = NativeLayer(native, parts_of(case, native), states)
    want = [row_of(Step.of(case, rows).together(layer), 0) for rows in (1, 5)]
    copies = [[tensor.clone() for tensor in one] for one in want]
    for rows in (1, 5, 2, 1, 5):
        got = Step.of(case, rows).together(layer)
        assert_equal(row_of(got, 0), copies[0])
    for kept, copy in zip(want, copies, strict=True):
        assert_equal(kept, copy)


def test_experts_of_rows_have_room_for_all(native: Library) -> None:
    """Rows of one expert that all chose: more than a kernel takes at once."""
    bank, state = Bank(native, "int8"), token_state_of(torch.full((MOST_ROWS, 1), 4))
    bank.fill(4)
    got = bank.experts.compute(state)
    assert got is not None
    want = torch.cat([bank.experts.compute(alone(state, row)) for row in range(MOST_ROWS)])
    assert torch.equal(got, want)
