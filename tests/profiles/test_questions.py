"""What a profile answers, on routers whose truth is known."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from coterie.errors import UsageError
from coterie.profiles import (
    Profile,
    ProfileDatabase,
    compare_domains,
    expert_card,
    expert_kinds,
    jensen_shannon,
    json_lines,
    rank_experts,
    share_profile,
    spare_experts,
    trust,
)
from coterie.profiles.kinds import effective_number
from profiles.conftest import write_profile
from profiles.synthetic import IDENTITY, Router, recorded, run_facts, shapes

LAYERS, EXPERTS, TOP_K = 48, 128, 8
BIG = Router(layers=LAYERS, experts=EXPERTS, top_k=TOP_K, burst=1.5)


def plan(domains: list[str]) -> dict[tuple[int, str], tuple[int, ...]]:
    """In every fourth layer one or two experts for each domain."""
    return {
        (layer, domain): tuple(range(7 * layer % 100 + 3 * place, 7 * layer % 100 + 3 * place + 1 + layer % 2))
        for layer in range(0, LAYERS, 4)
        for place, domain in enumerate(domains)
    }


@pytest.fixture(scope="module")
def random_profile(tmp_path_factory) -> Profile:
    """48 layers of 128 experts that are chosen at random, but alike within a document."""
    path = tmp_path_factory.mktemp("profiles") / "random.db"
    write_profile(path, BIG, {"code": 24, "prose": 24, "law": 24}, tokens=50)
    return Profile.open(path)


@pytest.fixture(scope="module")
def big_planted(tmp_path_factory) -> Profile:
    path = tmp_path_factory.mktemp("profiles") / "planted.db"
    router = Router(layers=LAYERS, experts=EXPERTS, top_k=TOP_K, burst=1.5, planted=plan(["code", "prose", "law"]))
    write_profile(path, router, {"code": 24, "prose": 24, "law": 24}, tokens=50, seed=1)
    return Profile.open(path)


def places(experts) -> set[tuple[int, int]]:
    return {(expert.layer, expert.expert_id) for expert in experts}


@pytest.mark.parametrize("domain", ["code", "prose", "law"])
def test_noise_is_not_called_a_specialist(random_profile, domain) -> None:
    ranking = rank_experts(random_profile, domain=domain)
    assert (ranking.total, ranking.blocks) == (LAYERS * EXPERTS, 12)
    assert ranking.specialists == 0
    # Were tokens independent, many would be: the test can tell.
    naive = sum(
        stats.binom.sf(expert.activations - 1, expert.tokens, expert.chance) * ranking.total < 0.05
        for expert in ranking.experts
    )
    assert naive > 100


def test_noise_neither_distinguishes_domains_nor_is_universal(random_profile) -> None:
    assert compare_domains(random_profile, "code", "law").distinguishing == 0
    kinds = expert_kinds(random_profile)
    assert (kinds.counts["universal"], kinds.counts["specialist"]) == (0, 0)


@pytest.mark.parametrize("domain", ["code", "prose", "law"])
def test_a_planted_map_is_recovered_exactly(big_planted, domain) -> None:
    truth = {(layer, e) for (layer, name), es in plan(["code", "prose", "law"]).items() if name == domain for e in es}
    ranking = rank_experts(big_planted, domain=domain, specialists_only=True)
    assert places(ranking.experts) == truth
    assert ranking.specialists == len(truth)
    for expert in ranking.experts:
        assert expert.specialisation == 1
        assert expert.q_value is not None
        assert expert.low is not None
        assert expert.low > 0.9


def test_a_moderate_preference_is_found(tmp_path) -> None:
    rng = np.random.default_rng(0)
    router = Router(layers=1, experts=32, top_k=4, burst=0.5)
    banks = shapes(1, 32, 4)
    segments, _ = recorded(router, {"code": 40, "prose": 40}, tokens=100)
    run = run_facts(banks)
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        database.add_run(run)
        for segment in segments:
            for counts in segment.banks[0].groups:
                if counts.group.domain == "code":
                    # A few tokens more for expert 9, and as many fewer for the others together.
                    more = rng.binomial(counts.tokens, 0.1)
                    counts.activations[9] += more
            database.write_segment(run.uuid, segment)
        ranking = rank_experts(Profile.read(database), domain="code", specialists_only=True)
    assert places(ranking.experts) == {(0, 9)}


def test_universal_experts_are_not_specialists(tmp_path) -> None:
    domains = ["code", "prose", "law"]
    planted = {(0, domain): (2,) for domain in domains} | {(1, "code"): (5,)}
    write_profile(tmp_path / "p.db", Router(planted=planted), dict.fromkeys(domains, 16))
    profile = Profile.open(tmp_path / "p.db")
    assert places(rank_experts(profile, domain="code", specialists_only=True).experts) == {(1, 5)}
    # It heads the list of layer 0 all the same, with the reason why it is none.
    first = next(expert for expert in rank_experts(profile, domain="code").experts if expert.layer == 0)
    assert (first.expert_id, first.specialisation, first.others, first.specialist) == (2, 1.0, 1.0, False)
    kinds = expert_kinds(profile)
    assert places(expert for expert in kinds.experts if expert.kind == "universal") == {(0, 2)}
    special = next(expert for expert in kinds.experts if expert.kind == "specialist")
    assert ((special.layer, special.expert_id), special.domains) == ((1, 5), ("code",))
    assert next(e for e in kinds.experts if e.kind == "universal").effective_domains == pytest.approx(3)


def test_what_shows_in_one_half_only_is_no_specialist(tmp_path) -> None:
    run = run_facts()
    quiet, _ = recorded(Router(), {"code": 20, "prose": 20}, seed=1)
    loud, _ = recorded(Router(planted={(0, "code"): (3,)}), {"code": 20, "prose": 20}, seed=2)
    # Of twenty documents of code, in ten segments, the second ten are of another kind.
    mixed = [loud[n] if 5 <= n < 10 else quiet[n] for n in range(20)]
    for name, segments, expected in (("mixed", mixed, set()), ("loud", loud, {(0, 3)})):
        with ProfileDatabase(tmp_path / name, create=True) as database:
            database.add_run(run)
            for segment in segments:
                database.write_segment(run.uuid, segment)
            ranking = rank_experts(Profile.read(database), domain="code", specialists_only=True)
            assert places(ranking.experts) == expected
            assert ranking.blocks == 10


def test_modalities_are_asked_about_like_domains(tmp_path) -> None:
    run = run_facts()
    text, _ = recorded(Router(), {"talk": 16})
    audio, _ = recorded(Router(planted={(1, "talk"): (4,)}), {"talk": 16}, modality="audio", first=len(text))
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        database.add_run(run)
        for segment in text + audio:
            database.write_segment(run.uuid, segment)
        profile = Profile.read(database)
        assert places(rank_experts(profile, modality="audio", specialists_only=True).experts) == {(1, 4)}
        assert profile.modalities == {"audio": 16 * 64, "text": 16 * 64}
        shared = share_profile(profile, database)
    assert next(e for e in shared.experts if (e.layer, e.expert_id) == (1, 4)).primary_modality == "audio"
    with pytest.raises(UsageError, match=r"Unknown modality of this profile 'image'. Valid: 'audio', 'text'"):
        rank_experts(profile, modality="image")


def test_too_few_segments_give_figures_and_no_findings(tmp_path) -> None:
    write_profile(tmp_path / "p.db", Router(planted={(0, "code"): (3,)}), {"code": 1, "prose": 1})
    profile = Profile.open(tmp_path / "p.db")
    ranking = rank_experts(profile, domain="code")
    best = ranking.experts[0]
    assert (best.layer, best.expert_id, best.specialisation) == (0, 3, 1.0)
    assert (best.low, best.high, best.q_value, best.specialist) == (None, None, None, False)
    assert (ranking.blocks, ranking.specialists) == (1, 0)
    contrast = compare_domains(profile, "code", "prose")
    assert contrast.distinguishing == 0
    assert contrast.experts[0].q_value is None
    json.dumps(asdict(ranking), allow_nan=False)
    json.dumps(asdict(contrast), allow_nan=False)


def test_what_distinguishes_two_domains(big_planted) -> None:
    contrast = compare_domains(big_planted, "code", "prose", limit=50)
    truth = {(layer, e) for (layer, name), es in plan(["code", "prose", "law"]).items() if name != "law" for e in es}
    assert truth <= places(contrast.experts)
    assert contrast.distinguishing >= len(truth)
    first = contrast.experts[0]
    assert first.difference == first.first - first.second
    assert abs(first.difference) > 0.9
    divergences = {layer.layer: layer.divergence for layer in contrast.layers}
    assert min(divergences[layer] for layer in range(0, LAYERS, 4)) > max(divergences[layer] for layer in (1, 2, 3))
    reverse = compare_domains(big_planted, "prose", "code", limit=50)
    assert {(*p,) for p in places(reverse.experts)} == places(contrast.experts)


def test_jensen_shannon_is_that_of_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    p, q = rng.random(9), rng.random(9)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert jensen_shannon(p, p) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(p, np.zeros(9)) == 0


def test_effective_numbers() -> None:
    assert effective_number(np.array([[1, 1, 0], [1, 0, 0]], float)) == pytest.approx([2, 1, 0])


def test_a_card_says_all_of_one_expert(tmp_path) -> None:
    path = tmp_path / "p.db"
    planted = {(0, "code"): (3, 5), (0, "law"): (1,)}
    run = run_facts(shapes(2, 16, 4), tokenizer="tiny-tokenizer")
    router = Router(layers=2, experts=16, top_k=4, planted=planted)
    write_profile(path, router, {"code": 20, "prose": 20, "law": 20}, run=run)
    with ProfileDatabase(path) as database:
        profile = Profile.read(database)
        card = expert_card(profile, database, 0, 3)
        table = profile.banks[run.banks[0].bank]
        assert (card.tokens, card.tokenizer, card.experts) == (60 * 64, "tiny-tokenizer", 16)
        assert card.activations == int(table.activations[:, 3].sum()) > 20 * 64
        assert card.domains[0].name == "code"
        assert card.domains[0].figures.specialist
        assert not any(share.figures.specialist for share in (*card.domains[1:], *card.modalities))
        # Made-up outputs have the norm 1 + id, so the highest id is trusted most.
        assert card.reap_score == pytest.approx(4 * card.gate_share * table.gate_mass.sum() / card.activations)
        assert (card.trust_basis, card.trust_observations) == ("reap", card.activations)
        best = card.companions[0]
        assert best.expert_id == 5
        assert best.together >= 20 * 64
        assert best.coactivation == pytest.approx(best.together / card.activations)
        assert best.lift > 1
        assert best.replicated
        for layer, expert in ((1, 3), (0, 12)):
            assert expert_card(profile, database, layer, expert).companions == ()
        with pytest.raises(UsageError, match="has no expert 16"):
            expert_card(profile, database, 0, 16)
        with pytest.raises(UsageError, match="no such bank of experts in layer 9"):
            expert_card(profile, database, 9, 0)


def test_tokens_that_an_expert_is_chosen_for(tmp_path) -> None:
    from coterie.profiles import Accumulator

    (shape,) = banks = shapes(1, 8, 2)
    accumulator = Accumulator(banks, vocabulary=16)
    group = accumulator.group("text", "code", "prompt")
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 10, 2000)
    token_ids[-3:] = 77
    ids = np.argsort(rng.random((2000, 8)), axis=1)[:, :2].astype(np.uint16)
    ids[token_ids == 4] = (6, 1)
    ids[token_ids == 77] = (6, 2)
    accumulator.add(shape.bank, ids, np.ones((2000, 2), np.float32), None, group, token_ids)
    run = run_facts(banks)
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        database.add_run(run)
        database.write_segment(run.uuid, accumulator.take(0))
        database.write_vocabulary(run.uuid, accumulator.vocabulary(1))
        profile = Profile.read(database)
        card = expert_card(profile, database, 0, 6)
        # Three occurrences of token 77 are too few to say anything.
        assert [token.token_id for token in card.top_tokens] == [4]
        (token,) = card.top_tokens
        assert (token.specialisation, token.occurrences) == (1.0, int((token_ids == 4).sum()))
        assert 0.9 < token.low < 1
        assert card.reap_score is None
        assert card.trust_basis == "gate"


def test_trust_is_the_rank_shrunk_by_few_observations(planted) -> None:
    (first, *_) = Profile.open(planted).banks.values()
    found = trust(first)
    observed = first.reap_counts.sum(axis=0)
    means = first.reap_sum.sum(axis=0) / observed
    ranks = (stats.rankdata(means) - 1) / 7
    assert found.scores == pytest.approx((observed * ranks + 32 * 0.5) / (observed + 32))
    assert found.contributions == pytest.approx(means)


def test_trust_of_what_was_hardly_seen_is_a_half() -> None:
    from coterie.profiles import BankTable

    counts = np.array([[0, 1, 400, 400]])
    (shape,) = shapes(1, 4, 2)
    table = BankTable(
        shape=shape, segments=np.zeros(1, np.intp), groups=np.zeros(1, np.intp), tokens=np.array([400]),
        entropy_sum=np.zeros(1), entropy_squares=np.zeros(1), activations=counts, gate_mass=counts * 0.5,
        reap_sum=counts * np.array([[0, 9.0, 2.0, 2.0]]), reap_counts=counts,
    )  # fmt: skip
    scores = trust(table).scores
    assert scores[0] == 0.5
    assert scores[1] == pytest.approx((1 * 1 + 16) / 33)
    # Equal contributions share a rank.
    assert scores[2] == scores[3] == pytest.approx((400 * 0.25 + 16) / 432)


def test_what_a_workload_can_do_without(tmp_path) -> None:
    path = tmp_path / "p.db"
    planted = {(0, "code"): (3, 5), (1, "code"): (0, 1)}
    write_profile(path, Router(planted=planted), {"code": 16, "prose": 16})
    profile = Profile.open(path)
    sparing = spare_experts(profile, domain="code")
    # Two of eight are always chosen for code, so six are never.
    assert places(sparing.experts) == {(0, e) for e in (0, 1, 2, 4, 6, 7)} | {(1, e) for e in range(2, 8)}
    assert (sparing.never, sparing.gate_mass_lost, sparing.tokens) == (12, 0.0, 16 * 64)
    assert all(expert.high is not None and 0 < expert.high < 0.01 for expert in sparing.experts)
    everything = spare_experts(profile)
    assert (everything.never, everything.experts) == (0, ())
    half = spare_experts(profile, share=0.5)
    assert len(half.experts) == 8
    for layer in (0, 1):
        own = [expert for expert in half.experts if expert.layer == layer]
        assert own[-1].lost == pytest.approx(sum(expert.gate_share for expert in own))
        shares = [expert.contribution_share for expert in own]
        assert shares == sorted(shares)
    assert half.gate_mass_lost == pytest.approx(np.mean([half.experts[3].lost, half.experts[7].lost]))
    some = spare_experts(profile, most_lost=half.experts[0].lost + 1e-9, component="text")
    assert places(some.experts) >= {(half.experts[0].layer, half.experts[0].expert_id)}
    # However much may be lost, k experts stay.
    assert len(spare_experts(profile, most_lost=0.99).experts) <= 12
    with pytest.raises(UsageError, match=r"share=1\.5"):
        spare_experts(profile, share=1.5)


def test_a_profile_in_the_form_that_is_shared(planted) -> None:
    with ProfileDatabase(planted) as database:
        profile = Profile.read(database)
        shared = share_profile(profile, database)
    assert (shared.schema_version, shared.identity, shared.runs, shared.tokens) == (1, IDENTITY, 1, 48 * 64)
    assert shared.domains == {"code": 1024, "law": 1024, "prose": 1024}
    expert = shared.experts[3]
    assert (expert.layer, expert.expert_id, expert.component, expert.primary_modality) == (0, 3, "text", "text")
    assert expert.domains["code"].specialist
    assert expert.domains["code"].specialisation == 1
    assert not expert.domains["law"].specialist
    assert expert.activation_frequency == pytest.approx(expert.activations / (48 * 64))
    assert 0 < expert.trust_score < 1
    other = shared.experts[8 + 5]
    assert other.co_activated_with[0].expert_id == 6
    assert other.co_activated_with[0].lift > 1
    lines = [json.loads(line) for line in json_lines(shared)]
    assert len(lines) == 17
    assert "experts" not in lines[0]
    assert lines[4] == json.loads(json.dumps(asdict(expert)))
    assert {
        "expert_id", "layer", "component", "primary_modality", "domains", "activation_frequency", "co_activated_with",
        "trust_score",
    } <= set(lines[1])  # fmt: skip


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda p: rank_experts(p, domain="cod"), "Unknown domain 'cod'. Did you mean 'code'"),
        (lambda p: rank_experts(p, domain="code", phase="x"), "Unknown phase 'x'"),
        (lambda p: rank_experts(p, domain="code", component="thinker"), "Unknown component 'thinker'"),
        (lambda p: rank_experts(p), "A domain or a modality is needed.*Domains: code, law, prose"),
        (lambda p: compare_domains(p, "code", "music"), "Valid: 'code', 'law', 'prose'"),
        (lambda p: compare_domains(p, "code", "code"), "cannot be compared with itself"),
        (lambda p: rank_experts(p, modality="sound"), "Unknown modality 'sound'"),
    ],
)
def test_unknown_names_are_told_the_known_ones(planted, question, message) -> None:
    with pytest.raises(UsageError, match=message):
        question(Profile.open(planted))
