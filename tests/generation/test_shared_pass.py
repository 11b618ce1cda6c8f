"""Several sequences share a pass: each gets what it gets alone, and nobody is told of another's misfortune."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch

from coterie.errors import ReadError
from coterie.generation.steps import Steps
from coterie.integration import RowRooms, rows_together
from coterie.native import MOST_ROWS, library
from coterie.passes.current import current
from coterie.records.reads import RecordReader
from coterie.spec import ExpertsSelected, ExpertsServed, StepStarted
from zoo import ZOO

from .beside import Beside, begun, count_shared
from .going import Failing

pytestmark = pytest.mark.skipif(library() is None, reason="the native library was not built")


@pytest.fixture
def model(store, open_model):
    return open_model(store())


@pytest.fixture
def shared(monkeypatch) -> list[int]:
    return count_shared(monkeypatch)


def finish(steps: Steps) -> None:
    while steps.going:
        steps.step()


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("options", [{}, {"expert_memory": "40%", "prefetch": "on"}])
def test_each_gets_what_it_gets_alone(scheme, options, store, open_model, shared) -> None:
    model = open_model(store(scheme=scheme), **options)
    assert rows_together(model) == MOST_ROWS
    alone = [Beside(model, seed, new=4 + seed % 4, sampled=seed % 3 == 0).alone() for seed in range(6)]
    steps, together = Steps(), []
    for seed in range(6):
        together.append(Beside(model, seed, new=4 + seed % 4, sampled=seed % 3 == 0))
        steps.add(together[-1].sequence)
        if seed % 2:
            steps.step()
    finish(steps)
    assert all(one.is_as(other) for one, other in zip(together, alone, strict=True))
    assert max(shared) > 3


def test_more_than_fit_into_a_pass_take_turns(model, shared) -> None:
    steps, many = begun(model, MOST_ROWS + 2, new=3)
    finish(steps)
    assert max(shared) == MOST_ROWS
    assert all(one.is_as(Beside(model, seed, new=3).alone()) for seed, one in enumerate(many))


def test_no_more_share_a_pass_than_are_wished(model, shared) -> None:
    steps, _ = begun(model, 5, steps=Steps(most_rows=2))
    finish(steps)
    assert set(shared) == {2}


@pytest.mark.parametrize(("eviction", "rows"), [("lru", 2), ("lfu", 2), ("markov", 5)])
def test_no_more_share_a_pass_than_a_policy_keeps_the_experts_of(eviction, rows, store, open_model, shared) -> None:
    """Two rows that choose 2 of 8 experts by chance ask for 3.5 of them; there is room for 4."""
    steps, several = begun(open_model(store(), expert_memory="50%", eviction=eviction), 5)
    finish(steps)
    assert max(shared) == rows
    assert all(one.sequence.error is None for one in several)


@pytest.mark.parametrize(
    ("name", "dense", "why"),
    [("qwen3_moe", "native", "linear layers are torch's"), ("deepseek_v3", None, "its layers are the class's")],
)
def test_other_models_take_turns(name, dense, why, store, open_model, shared) -> None:
    model = open_model(store(name, dense))
    assert rows_together(model) == 1, why
    steps, several = begun(model, 3)
    finish(steps)
    assert not shared
    assert all(one.is_as(Beside(model, seed).alone()) for seed, one in enumerate(several))


def test_what_depends_on_who_is_beside_is_computed_alone(model, shared) -> None:
    with model.coterie.adapt_experts("gate:0.5"):
        alone = [Beside(model, seed).alone() for seed in range(2)]
        steps, several = begun(model, 2)
        finish(steps)
    assert not shared
    assert all(one.is_as(other) for one, other in zip(several, alone, strict=True))


def test_one_with_another_cache_takes_turns_with_those_that_share(model, shared) -> None:
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 2)
    other = Beside(model, 2, inputs={"input_ids": several[0].sequence.ids[:, :5], "cache_implementation": "static"})
    steps.add(other.sequence)
    finish(steps)
    assert shared == [2] * 4  # one of the five rounds finds out who is in the way
    assert all(one.is_as(alone[seed]) for seed, one in enumerate(several))
    assert len(other.logits) == 6


def test_layers_that_are_no_longer_native_are_noticed(model, shared) -> None:
    alone = [Beside(model, seed).alone() for seed in range(2)]
    steps, several = begun(model, 2)
    steps.step()
    hook = model.model.layers[1].self_attn.register_forward_hook(lambda *_: None)
    steps.step()
    steps.step()
    hook.remove()
    finish(steps)
    assert shared == [2, 2]
    assert [one.sequence.error for one in several] == [None, None]
    assert [len(one.logits) for one in several] == [len(one.logits) for one in alone]


def test_a_layer_asks_for_each_expert_once(store, open_model) -> None:
    model = open_model(store(), expert_memory="40%")
    steps, _ = begun(model, 4)
    events: list[Any] = []

    class Told:
        def on_event(self, event: object) -> None:
            events.append(event)

    model.coterie.add_observer(Told())
    before = model.coterie.stats().total.requested
    steps.step()
    chosen = [set(one.expert_ids.flatten().tolist()) for one in events if isinstance(one, ExpertsSelected)]
    served = [one.requested for one in events if isinstance(one, ExpertsServed)]
    assert served == [len(ids) for ids in chosen]
    assert len(served) == len(model.coterie.banks)
    assert model.coterie.stats().total.requested - before == sum(served) < 4 * 2 * len(served)


def test_a_pass_knows_all_its_rows(model) -> None:
    steps, several = begun(model, 3)
    passes: list[Any] = []

    class Told:
        def on_event(self, event: object) -> None:
            if isinstance(event, StepStarted):
                now = current()
                passes.append((now.rows, now.phase, now.batch, now.tokens))

    model.coterie.add_observer(Told())
    rows = tuple(one.sequence.row for one in several)
    steps.step()
    assert passes == [(rows, "decode", 3, 1)]
    assert len({row.position for row in rows}) == 3


def test_losses_are_as_alone(model) -> None:
    losses: dict[Any, list[float]] = {}

    class Losses:
        wants_losses = True

        def on_event(self, event: Any) -> None:
            if (found := getattr(event, "losses", None)) is not None:
                for row, values in zip(current().rows, found.tolist(), strict=True):
                    losses.setdefault(row.request, []).extend(values)

    model.coterie.add_observer(Losses())
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 3)
    finish(steps)
    for one, other in zip(several, alone, strict=True):
        assert str(losses[one.sequence.request]) == str(losses[other.sequence.request])
        assert losses[one.sequence.request][-1] > 0


def experts_of(model: Any, seed: int) -> set[Any]:
    """What the decode steps of a sequence choose."""
    found: set[Any] = set()

    class Told:
        def on_event(self, event: object) -> None:
            if isinstance(event, ExpertsSelected) and current().decode:
                found.update(event.bank.expert(int(expert)) for expert in event.expert_ids.flatten())

    model.coterie.add_observer(observer := Told())
    Beside(model, seed).alone()
    model.coterie.remove_observer(observer)
    return found


def test_an_expert_that_cannot_be_read_ends_who_needs_it(store, open_model, monkeypatch, shared) -> None:
    whole = open_model(store())
    alone = [Beside(whole, seed).alone() for seed in range(4)]
    chosen = [experts_of(whole, seed) for seed in range(4)]
    victim = next(i for i in range(4) if chosen[i].difference(*chosen[:i], *chosen[i + 1 :]))
    bad = chosen[victim].difference(*chosen[:victim], *chosen[victim + 1 :])
    model = open_model(store(), expert_memory="30%", prefetch="off")
    steps, several = begun(model, 4)
    prepare_read = RecordReader.prepare

    def prepare(self: RecordReader, key: Any, layout: Any, record: Any) -> Any:
        if key in bad:
            raise ReadError("bad sector", key=key)
        return prepare_read(self, key, layout, record)

    monkeypatch.setattr(RecordReader, "prepare", prepare)
    finish(steps)
    for seed, one in enumerate(several):
        if seed != victim:
            assert one.is_as(alone[seed])
    with pytest.raises(ReadError, match="bad sector"):
        several[victim].sequence.check()
    assert several[victim].begins(alone[victim])
    assert shared[0] == 4
    assert shared[-1] in (2, 3)


def test_who_is_refused_in_a_pass_is_refused_alone(model, shared) -> None:
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 3)
    model.coterie.add_observer(Failing(several[0].sequence.request, 1, ValueError("broken")))
    finish(steps)
    with pytest.raises(ValueError, match="broken"):
        several[0].sequence.check()
    assert all(several[seed].is_as(alone[seed]) for seed in (1, 2))


def at_layer(monkeypatch, layer: int, act: Any) -> None:
    """Does something when a shared pass comes to a layer, once, in another thread."""
    original = RowRooms.places
    left = [act]

    def places(self: RowRooms, layer_idx: int) -> Any:
        if layer_idx == layer and left:
            thread = threading.Thread(target=left.pop())
            thread.start()
            thread.join()
        return original(self, layer_idx)

    monkeypatch.setattr(RowRooms, "places", places)


def test_one_that_leaves_in_the_middle_of_a_pass_frees_its_cache_at_once(model, monkeypatch) -> None:
    alone = [Beside(model, seed).alone() for seed in range(3)]
    steps, several = begun(model, 3)
    steps.step()
    leaving = several[1].sequence
    kept = [weakref.ref(layer.__dict__["_coterie_room"]._keys) for layer in leaving.cache.layers]
    asked: list[Any] = []

    class Told:
        def on_event(self, event: object) -> None:
            if isinstance(event, ExpertsSelected):
                asked.append(event.expert_ids.tolist())

    model.coterie.add_observer(observer := Told())
    gone: list[list[bool]] = []
    copy_over = RowRooms.copy_over_left

    def copy_over_left(self: RowRooms, results: Any) -> None:
        gone.append([ref() is None for ref in kept])
        copy_over(self, results)

    monkeypatch.setattr(RowRooms, "copy_over_left", copy_over_left)
    at_layer(monkeypatch, 1, lambda: steps.remove(leaving))
    steps.step()
    model.coterie.remove_observer(observer)
    assert gone == [[False, False], [True, True]]
    assert (leaving.ended, leaving.error, len(leaving.new_ids)) == (True, None, 2)
    assert asked[0][1] != asked[0][0]
    assert asked[1][1] == asked[1][0]
    finish(steps)
    assert several[0].is_as(alone[0])
    assert several[2].is_as(alone[2])
    assert several[1].begins(alone[1])


def test_a_pass_that_all_leave_ends(model, monkeypatch) -> None:
    steps, several = begun(model, 2)
    at_layer(monkeypatch, 1, lambda: [steps.remove(one.sequence) for one in several])
    steps.step()
    assert not steps.going
    assert [one.sequence.error for one in several] == [None, None]
    assert [len(one.sequence.new_ids) for one in several] == [1, 1]


def test_one_that_leaves_during_its_own_pass_ends_with_it(model) -> None:
    steps, (one,) = begun(model, 1)

    class Leaving:
        def on_event(self, event: object) -> None:
            steps.remove(one.sequence)

    model.coterie.add_observer(observer := Leaving())
    steps.step()
    model.coterie.remove_observer(observer)
    assert one.sequence.ended
    assert not steps.going
    steps.finish(one.sequence)


def test_an_interrupt_ends_all_that_share_the_pass(model, monkeypatch) -> None:
    steps, several = begun(model, 2)

    def interrupted(self: RowRooms, layer_idx: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(RowRooms, "places", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.step()
    monkeypatch.undo()
    assert all(one.sequence.ended for one in several)
    later = Beside(model, 3)
    steps.add(later.sequence)
    steps.finish(later.sequence)
    assert later.is_as(Beside(model, 3).alone())


def test_caches_count_for_what_each_holds(store, open_model, shared) -> None:
    """Were all counted as long as the longest, they would not have room beside each other."""
    model = open_model(store(), max_context=60)
    long = Beside(model, 0, new=6, inputs={"input_ids": torch.arange(3, 33)[None]})
    steps = Steps()
    short = [Beside(model, 5, new=6, inputs={"input_ids": torch.arange(3, 6)[None]}) for _ in range(2)]
    for one in (long, *short):
        steps.add(one.sequence)
    finish(steps)
    assert [one.sequence.error for one in (long, *short)] == [None] * 3
    assert max(shared) == 3


def test_pictures_and_sounds_share_passes_with_texts(store, open_model, shared) -> None:
    model = open_model(store("qwen3_omni_thinker"))
    given = [
        ZOO["qwen3_omni_thinker"].inputs(seed=seed, length=32 - 4 * seed, image=seed < 2, audio=seed > 0)
        for seed in range(3)
    ]
    prompts = [
        {name: one.bfloat16() if one.is_floating_point() else one for name, one in inputs.items()} for inputs in given
    ]
    alone = [Beside(model, seed, inputs=inputs).alone() for seed, inputs in enumerate(prompts)]
    steps = Steps()
    several = [Beside(model, seed, inputs=inputs) for seed, inputs in enumerate(prompts)]
    for one in several:
        steps.add(one.sequence)
    steps.step()
    # Older releases of transformers make positions within the forward pass, of the sequence that came last.
    given = (several[0].sequence.next_inputs() or {}).get("position_ids") is not None
    finish(steps)
    assert max(shared, default=1) == (3 if given else 1)
    assert all(one.is_as(other) for one, other in zip(several, alone, strict=True))
