"""Planted routers are recovered exactly; random ones show nothing."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.planted import DOMAINS, EXPERTS, GROUPS, LAYERS, planted_profile, random_rows, routed_checkpoint
from coterie.analysis import RouterAnalysis, Routers, examine_routers
from coterie.errors import ProfileIdentityError, UnsupportedError, UsageError
from coterie.profiles import Profile, ProfileDatabase
from coterie.spec.json_schema import json_schema
from profiles.synthetic import Router, recorded, run_facts, shapes


def test_a_planted_map_is_recovered_exactly(planted_checkpoint, planted_db):
    found = examine_routers(planted_checkpoint, profile=planted_db, draws=19)
    assert [layer.clustered for layer in found.layers] == [False, True, False, True]
    for layer in found.layers[1::2]:
        assert layer.clusters == len(DOMAINS)
        assert list(layer.labels) == GROUPS.tolist()
        assert layer.q_value <= 0.05
    domains = [one for one in found.agreements if one.grouping == "domain"]
    assert [one.agrees for one in domains] == [False, True, False, True]
    assert [one.rand_index for one in domains if one.agrees] == [1.0, 1.0]
    assert domains[1].groups == dict.fromkeys(DOMAINS, EXPERTS // len(DOMAINS))
    assert all(abs(one.rand_index) < 0.3 for one in domains if not one.agrees)
    # Two domains are text and one is pictures: the clusters show modalities as well, but are finer.
    modalities = [one for one in found.agreements if one.grouping == "modality"]
    assert [one.agrees for one in modalities] == [False, True, False, True]
    assert modalities[1].groups == {"image": 8, "text": 16}
    assert 0.3 < modalities[1].rand_index < 1
    assert found.answer == (
        f"Router rows form clusters in 2 of 4 layers; they show the recorded modalities in 2 of 4 (adjusted Rand index "
        f"{modalities[1].rand_index:.2f} to {modalities[3].rand_index:.2f}); they show the recorded domains in 2 of 4 "
        "(adjusted Rand index 1.00 to 1.00)."
    )


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_random_routers_show_nothing(count, tmp_path):
    for seed in range(count):
        model = routed_checkpoint(tmp_path / str(seed), [random_rows(100 * seed + layer) for layer in range(LAYERS)])
        profile = planted_profile(tmp_path / f"{seed}.db", Routers.open(model).identity, (1, 3))
        found = examine_routers(model, profile=profile, draws=19, seed=seed)
        assert not any(layer.clustered for layer in found.layers)
        assert not any(one.agrees for one in found.agreements)
        assert "they show nothing of the recorded domains (in none of 4 layers)" in found.answer
        assert found.answer.startswith("In none of 4 layers do router rows form clusters")


def test_what_clusters_agree_with_must_show_in_both_halves(planted_checkpoint, tmp_path):
    """In the first half of each domain experts serve the domain of their cluster; in the second each serves another."""
    router = Router(layers=LAYERS, experts=EXPERTS, top_k=8)
    identity = Routers.open(planted_checkpoint).identity
    for name, changed in (("same", False), ("changed", True)):
        run = run_facts(shapes(LAYERS, EXPERTS, 8), identity=identity)
        with ProfileDatabase(tmp_path / f"{name}.db", create=True) as database:
            database.add_run(run)
            number = 0
            for half in range(2):
                groups = np.arange(EXPERTS) // 8 if half and changed else GROUPS
                planted = {
                    (layer, domain): tuple(np.flatnonzero(groups == index).tolist())
                    for layer in (1, 3)
                    for index, domain in enumerate(DOMAINS)
                }
                tokens = 20 if half else 32
                made, _ = recorded(
                    replace(router, planted=planted), dict.fromkeys(DOMAINS, 16), seed=half, tokens=tokens
                )
                for segment in made:
                    database.write_segment(run.uuid, replace(segment, number=number))
                    number += 1
        found = examine_routers(planted_checkpoint, profile=tmp_path / f"{name}.db", draws=19)
        domains = [one for one in found.agreements if one.grouping == "domain" and one.layer % 2]
        assert all(one.q_value <= 0.05 for one in domains)
        assert [one.replicated for one in domains] == [not changed] * 2
        assert [one.agrees for one in domains] == [not changed] * 2


def test_layers_do_not_depend_on_which_others_are_examined(planted_checkpoint):
    whole = examine_routers(planted_checkpoint, draws=5)
    again = examine_routers(planted_checkpoint, draws=5)
    assert whole == again
    part = examine_routers(planted_checkpoint, draws=5, layers="1,3")
    for one, other in zip(part.layers, whole.layers[1::2], strict=True):
        assert (one.labels, one.silhouette, one.random_silhouette) == (
            other.labels,
            other.silhouette,
            other.random_silhouette,
        )
    assert [(one.layer, one.next_layer) for one in part.overlaps] == [(1, 3)]
    assert [(one.layer, one.next_layer) for one in whole.overlaps] == [(0, 1), (1, 2), (2, 3)]


def test_a_number_of_clusters_can_be_asked_for(planted_checkpoint):
    found = examine_routers(planted_checkpoint, clusters=5, draws=5)
    assert [layer.clusters for layer in found.layers] == [5] * LAYERS
    assert all(len(set(layer.labels)) == 5 for layer in found.layers)
    with pytest.raises(UsageError, match="Give 2 to 23"):
        examine_routers(planted_checkpoint, clusters=24, draws=5)


def test_neighbours_of_a_planted_expert_serve_its_domain(planted_checkpoint):
    found = examine_routers(planted_checkpoint, layers=[1], expert=(1, 4), draws=5).neighbourhood
    assert (found.layer, found.expert_id, found.component) == (1, 4, "text")
    assert {GROUPS[one.expert_id] for one in found.neighbours[:7]} == {GROUPS[4]}
    assert all(one.cosine > 0.6 and one.deviations > 1 for one in found.neighbours[:7])
    with pytest.raises(UsageError, match="It has 0 to 23"):
        examine_routers(planted_checkpoint, layers=[1], expert=(1, 24), draws=5)


def test_names_that_are_not_there_are_refused_with_those_that_are(planted_checkpoint):
    with pytest.raises(UsageError, match="Layers that have one: 0, 1, 2, 3"):
        examine_routers(planted_checkpoint, layers="7")
    with pytest.raises(UsageError, match="Layers that have one: 0, 1, 2, 3"):
        examine_routers(planted_checkpoint, expert=(9, 0))
    with pytest.raises(UsageError, match="Valid: 'text'"):
        examine_routers(planted_checkpoint, component="thinker2")


def test_a_profile_of_another_model_is_refused(planted_checkpoint, planted_db, zoo_checkpoint):
    with pytest.raises(ProfileIdentityError):
        examine_routers(zoo_checkpoint("qwen3_moe"), profile=planted_db)
    with pytest.raises(ProfileIdentityError):
        examine_routers(zoo_checkpoint("qwen3_moe"), profile=Profile.open(planted_db))


def test_a_router_of_several_matrices_is_named(zoo_checkpoint):
    from zoo import MATRIX

    if MATRIX["zaya"].why_not:
        pytest.skip(MATRIX["zaya"].why_not)
    with pytest.raises(UnsupportedError, match=r"is a ZayaRouter of 4 matrices, not of one \(down_proj.weight"):
        examine_routers(zoo_checkpoint("zaya"))


def test_the_result_has_a_schema_that_it_meets(planted_checkpoint, planted_db):
    schema = json_schema(RouterAnalysis)
    found = json.loads(json.dumps(dataclasses.asdict(examine_routers(planted_checkpoint, profile=planted_db, draws=3))))
    assert set(found) == set(schema["required"])
    assert found["schema_version"] == 1
    assert set(found["layers"][0]) == set(schema["$defs"]["RouterLayer"]["required"])
    assert set(found["agreements"][0]) == set(schema["$defs"]["Agreement"]["required"])
    assert np.isfinite(found["layers"][0]["effective_rank"])
