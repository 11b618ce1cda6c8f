"""The text is designed: every engine says the walk, and routing has the persistence that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import coterie
from coterie.eviction import Group, simulate
from fullsize.as_store import write_as_store
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import RUN, TOPICS, Walk, text_of, token_of
from synthetic import Dimensions

MODEL = FullSizeModel(SHAPES["tiny"])


def test_the_walk_is_one_cycle_through_all_ids() -> None:
    walk = Walk(1000, np.random.default_rng(0))
    assert sorted(walk.tokens(0, 1000)) == list(range(1000))
    assert walk.tokens(995, 10) == walk.tokens(995, 5) + walk.tokens(0, 5)
    predecessors = walk.predecessors
    for before, token in zip(walk.tokens(0, 999), walk.tokens(1, 999), strict=True):
        assert predecessors[token] == before
    assert walk.following(walk.tokens(7, 1)[0], 3) == walk.tokens(8, 3)


def test_a_topic_stays_for_a_run() -> None:
    walk = Walk(64 * RUN, np.random.default_rng(1))
    topics = walk.topics[walk.tokens(0, 64 * RUN)].reshape(64, RUN)
    assert (topics == topics[:, :1]).all()
    assert len(set(topics[:, 0].tolist())) > TOPICS / 4


def test_texts_and_ids_translate() -> None:
    assert [token_of(text_of(token)) for token in (0, 1, 61, 62, 151935, 238327)] == [0, 1, 61, 62, 151935, 238327]
    assert all(len(text_of(token)) == 3 for token in (0, 5000, 238327))


def test_greedy_decoding_says_the_walk_by_a_wide_margin(tmp_path: Path) -> None:
    write_as_store(tmp_path / "store", MODEL, "tiny")
    model = coterie.load(tmp_path / "store", expert_memory="100%")
    prompt = torch.tensor([MODEL.walk.tokens(100, 12)])
    logits = model(prompt).logits[0].float()
    assert logits.argmax(-1).tolist() == MODEL.walk.tokens(101, 12)
    best = logits.topk(2, dim=-1).values
    # Bfloat16 at 32 has steps of a quarter.
    assert (best[:, 0] - best[:, 1]).min() > 4
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    assert out[0, 12:].tolist() == MODEL.walk.tokens(112, 20)
    model.coterie.close()


def test_hit_rates_are_those_of_the_design() -> None:
    # Of the real width, with fewer ids and layers: rates depend on neither.
    model = FullSizeModel(Dimensions(layers=3, vocabulary=1024))
    routers = [tensor for tensor in model.dense() if tensor.kind == "router"]
    embedding = next(model.dense())
    x = model.coded(embedding).rows(np.array(model.walk.tokens(0, 512))).values()
    x /= np.sqrt((x**2).mean(axis=1, keepdims=True))
    rates = []
    for capacity in (16, 32, 64):
        found = []
        for layer, router in enumerate(routers):
            chosen = np.argpartition(-(x @ model.plain(router).T), 8, axis=1)[:, :8].tolist()
            groups = [Group(step=step, layer=layer, keys=tuple(ids)) for step, ids in enumerate(chosen)]
            found.append(simulate(groups, capacity, "lru").hit_rate)
        rates.append(float(np.mean(found)))
    for rate, wanted in zip(rates, (0.65, 0.81, 0.92), strict=True):
        assert abs(rate - wanted) < 0.04
