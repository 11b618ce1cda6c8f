import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import UsageError
from coterie.profiles import Accumulator, BankShape, SegmentFacts
from coterie.profiles.counters import gate_entropy
from coterie.spec import BankKey
from profiles.contents import same_segments
from profiles.synthetic import shapes

BANK = BankKey("text", 0, "mlp")


def drawn(seed: int, tokens: int, experts: int, top_k: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.uint16)
    weights = rng.random((tokens, top_k), dtype=np.float32)
    outputs = rng.random((tokens, top_k), dtype=np.float32)
    return ids, weights, outputs, rng.integers(0, 3, tokens).astype(np.uint8), rng.integers(0, 20, tokens)


def three_groups(accumulator: Accumulator) -> list[int]:
    return [
        accumulator.group("text", "code", "prompt"),
        accumulator.group("text", "code", "generated"),
        accumulator.group("audio", "talk", "prompt"),
    ]


@given(st.integers(0, 1000), st.integers(1, 70), st.integers(2, 9), st.integers(1, 30), st.data())
def test_counts_are_those_of_a_plain_loop(seed, tokens, experts, buffer, data) -> None:
    top_k = data.draw(st.integers(1, experts))
    ids, weights, outputs, groups, token_ids = drawn(seed, tokens, experts, top_k)
    shape = BankShape(bank=BANK, experts=experts, top_k=top_k)
    accumulator = Accumulator([shape], vocabulary=64, buffer_tokens=buffer)
    assert three_groups(accumulator) == [0, 1, 2]
    cuts = sorted(data.draw(st.lists(st.integers(0, tokens), max_size=4)))
    for start, end in zip([0, *cuts], [*cuts, tokens], strict=True):
        part = slice(start, end)
        accumulator.add(BANK, ids[part], weights[part], outputs[part], groups[part], token_ids[part])
    segment = accumulator.take(7)
    assert (segment.number, segment.tokens) == (7, tokens)
    (bank,) = segment.banks
    pairs: Counter[tuple[int, int]] = Counter()
    for row in ids.tolist():
        pairs.update((a, b) for a in row for b in row if a < b)
    expected = [pairs[a, b] for a in range(experts) for b in range(a + 1, experts)]
    assert bank.pairs is not None
    assert bank.pairs.tolist() == expected
    for counts in bank.groups:
        mine = groups == accumulator.groups.index(counts.group)
        assert counts.tokens == mine.sum()
        entropy = gate_entropy(weights[mine])
        assert counts.entropy_sum == pytest.approx(entropy.sum())
        assert counts.entropy_squares == pytest.approx((entropy**2).sum())
        for expert in range(experts):
            chosen = ids[mine] == expert
            assert counts.activations[expert] == counts.reap_counts[expert] == chosen.sum()
            assert counts.gate_mass[expert] == pytest.approx(weights[mine][chosen].sum(dtype=np.float64))
            assert counts.reap_sum[expert] == pytest.approx(outputs[mine][chosen].sum(dtype=np.float64))
    assert {counts.group for counts in bank.groups} == {accumulator.groups[g] for g in set(groups.tolist())}
    vocabulary = accumulator.vocabulary(1)
    state = vocabulary.banks[BANK]
    found = dict(
        zip(zip(state.experts.tolist(), state.tokens.tolist(), strict=True), state.counts.tolist(), strict=True)
    )
    assert found == Counter((e, t) for row, t in zip(ids.tolist(), token_ids.tolist(), strict=True) for e in row)
    totals = vocabulary.totals["text", "mlp"]
    assert dict(zip(totals.tokens.tolist(), totals.counts.tolist(), strict=True)) == Counter(token_ids.tolist())


def test_taking_begins_anew_but_for_tokens() -> None:
    ids, weights, outputs, groups, token_ids = drawn(0, 40, 6, 2)
    shape = BankShape(bank=BANK, experts=6, top_k=2)
    accumulator, fresh = Accumulator([shape]), Accumulator([shape])
    for one in (accumulator, fresh):
        three_groups(one)
    accumulator.add(BANK, ids, weights, outputs, groups, token_ids)
    first = accumulator.take(0)
    assert accumulator.tokens == 0
    assert accumulator.take(1).banks == ()
    accumulator.add(BANK, ids[:10], weights[:10], outputs[:10], groups[:10], token_ids[:10])
    fresh.add(BANK, ids[:10], weights[:10], outputs[:10], groups[:10], token_ids[:10])
    assert same_segments([accumulator.take(1)], [fresh.take(1)])
    assert first.tokens == 40
    assert int(accumulator.vocabulary(2).totals["text", "mlp"].counts.sum()) == 50


def test_what_is_no_expert_is_not_counted() -> None:
    shape = BankShape(bank=BANK, experts=4, top_k=3)
    accumulator = Accumulator([shape])
    group = accumulator.group("text", "code", "prompt")
    ids = np.array([[0, 65535, 2], [1, 65535, 65535]], np.uint16)
    accumulator.add(BANK, ids, np.ones((2, 3), np.float32), None, group, np.array([5, -1]))
    # Fewer experts per token than usual.
    accumulator.add(BANK, np.array([[3]], np.uint16), np.ones((1, 1), np.float32), None, group)
    (bank,) = accumulator.take(0).banks
    (counts,) = bank.groups
    assert counts.tokens == 3
    assert counts.activations.tolist() == counts.gate_mass.tolist() == [1, 1, 1, 1]
    assert counts.reap_counts.sum() == counts.reap_sum.sum() == 0
    assert bank.pairs is not None
    assert bank.pairs.tolist() == [0, 1, 0, 0, 0, 0]
    state = accumulator.vocabulary(1).banks[BANK]
    assert list(zip(state.experts.tolist(), state.tokens.tolist(), strict=True)) == [(0, 5), (2, 5)]


def test_outputs_may_be_measured_for_some_tokens() -> None:
    accumulator = Accumulator([BankShape(bank=BANK, experts=2, top_k=1)])
    group = accumulator.group("text", "code", "prompt")
    outputs = np.array([[2.0], [np.nan], [3.0]], np.float32)
    accumulator.add(BANK, np.array([[0], [0], [1]], np.uint16), np.ones((3, 1), np.float32), outputs, group)
    (counts,) = accumulator.take(0).banks[0].groups
    assert counts.activations.tolist() == [2, 1]
    assert counts.reap_counts.tolist() == [1, 1]
    assert counts.reap_sum.tolist() == [2.0, 3.0]


def test_entropy_is_that_of_the_gate_weights() -> None:
    weights = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]], np.float32)
    assert gate_entropy(weights).tolist() == pytest.approx(
        [np.log(4), 0, 0, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    )


def test_memory_is_bounded() -> None:
    banks = shapes(4, 16, 4)
    accumulator = Accumulator(banks, vocabulary=4, buffer_tokens=64)
    group = accumulator.group("text", "code", "prompt")
    rng = np.random.default_rng(0)

    def feed(rounds: int) -> None:
        for _ in range(rounds):
            ids = np.argsort(rng.random((500, 16)), axis=1)[:, :4].astype(np.uint16)
            weights = rng.random((500, 4), dtype=np.float32)
            for shape in banks:
                accumulator.add(shape.bank, ids, weights, weights, group, rng.integers(0, 1000, 500))

    feed(40)
    # All thousand token ids have been seen.
    held = accumulator.nbytes
    feed(30)
    assert accumulator.nbytes == held
    sketches = [counters.sketch for counters in accumulator._banks.values()]
    assert all(sketch is not None and 0 < sketch.nbytes <= sketch.most_nbytes for sketch in sketches)


def test_threads_count_together() -> None:
    accumulator = Accumulator([BankShape(bank=BANK, experts=4, top_k=2)], buffer_tokens=16)
    group = accumulator.group("text", "code", "prompt")
    ids, weights = np.array([[0, 1]], np.uint16), np.ones((1, 2), np.float32)
    segments: list[SegmentFacts] = []

    def feed() -> None:
        for _ in range(500):
            accumulator.add(BANK, ids, weights, None, group, 3)

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        segments.append(accumulator.take(len(segments)))
    for thread in threads:
        thread.join()
    segments.append(accumulator.take(len(segments)))
    assert sum(segment.tokens for segment in segments) == 2000
    assert sum(int(bank.groups[0].activations[1]) for segment in segments for bank in segment.banks) == 2000


@pytest.mark.parametrize(
    ("modality", "domain", "phase", "message"),
    [
        ("txet", "code", "prompt", "Unknown modality 'txet'. Did you mean 'text'"),
        ("text", "code", "prefill", "Unknown phase 'prefill'"),
        ("text", "", "prompt", "not the name of a domain"),
        ("text", "x" * 65, "prompt", "not the name of a domain"),
        ("text", "a\nb", "prompt", "not the name of a domain"),
    ],
)
def test_groups_have_names_that_can_be(modality, domain, phase, message) -> None:
    accumulator = Accumulator(shapes())
    with pytest.raises(UsageError, match=message):
        accumulator.group(modality, domain, phase)


def test_groups_are_as_many_as_a_byte_can_tell() -> None:
    accumulator = Accumulator(shapes())
    assert [accumulator.group("text", f"d{n}", "prompt") for n in range(256)] == list(range(256))
    assert accumulator.group("text", "d7", "prompt") == 7
    with pytest.raises(UsageError, match="More than 256"):
        accumulator.group("text", "one more", "prompt")


@pytest.mark.parametrize(
    "banks",
    [
        [BankShape(bank=BANK, experts=4, top_k=2), BankShape(bank=BANK, experts=4, top_k=2)],
        [BankShape(bank=BANK, experts=0, top_k=0)],
        [BankShape(bank=BANK, experts=2, top_k=3)],
        [BankShape(bank=BANK, experts=65536, top_k=3)],
    ],
)
def test_banks_must_be_possible(banks) -> None:
    with pytest.raises(UsageError):
        Accumulator(banks)
