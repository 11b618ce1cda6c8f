"""Expected use against the counters that it is made of, and what it says about a planted model."""

import numpy as np
import pytest

from coterie.errors import ProfileFormatError, ProfileIdentityError, UsageError
from coterie.profiles import Profile, ProfileDatabase, Usage, trust
from coterie.spec import BankKey
from profiles.conftest import write_profile
from profiles.synthetic import Router

FIRST, SECOND = BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp")


def test_sums_are_those_of_the_whole_profile(place):
    router = Router(planted={(0, "code"): (3,)})
    write_profile(place, router, {"code": 5, "prose": 3})
    write_profile(place, router, {"prose": 4}, seed=1, modality="audio")
    usage, profile = Usage.open(place), Profile.open(place)
    assert (usage.groups, usage.identity, usage.model) == (profile.groups, profile.identity, profile.model)
    assert usage.domains == ("code", "prose")
    assert usage.modalities == ("audio", "text")
    for key, table in profile.banks.items():
        for group in range(len(profile.groups)):
            rows = table.groups == group
            for name in ("tokens", "activations", "gate_mass", "reap_sum", "reap_counts"):
                want = getattr(table, name)[rows].sum(axis=0)
                np.testing.assert_allclose(getattr(usage.banks[key], name)[group], want, rtol=1e-12)
        np.testing.assert_allclose(trust(usage.banks[key]).scores, trust(table).scores)


def test_expected_use_is_what_its_formula_says(planted):
    usage = Usage.open(planted)
    bank = usage.banks[FIRST]
    code = [group.domain for group in usage.groups].index("code")
    for measure in ("activations", "gate_mass"):
        counts = getattr(bank, measure)
        overall = counts.sum(axis=0) / bank.tokens.sum()
        want = (counts[code] + 64 * overall) / (bank.tokens[code] + 64)
        np.testing.assert_allclose(usage.expected(domain="code", measure=measure).rates[FIRST], want)
    # Every token selects two experts.
    assert usage.expected().rates[SECOND].sum() == pytest.approx(2)


def test_planted_experts_come_first_in_their_domain_only(planted):
    usage = Usage.open(planted)
    sizes = {key.expert(e): 100 for key in (FIRST, SECOND) for e in range(8)}
    assert usage.expected(domain="code").order(sizes)[0] == FIRST.expert(3)
    assert set(usage.expected(domain="prose").order(sizes)[:2]) == {SECOND.expert(5), SECOND.expert(6)}


def test_order_is_by_use_per_byte_and_leaves_out_what_it_does_not_know(planted):
    usage = Usage.open(planted).expected(domain="code")
    small, large = FIRST.expert(1), FIRST.expert(3)
    ratio = usage.values()[large] / usage.values()[small]
    assert usage.order({small: 100, large: int(90 * ratio)}) == [large, small]
    assert usage.order({small: 100, large: int(110 * ratio)}) == [small, large]
    assert usage.order({BankKey("text", 9, "mlp").expert(0): 1, small: 1}) == [small]


def test_the_likeliest_domain_is_the_one_that_the_activations_are_from(planted):
    usage = Usage.open(planted)
    by_domain = {group.domain: row for row, group in enumerate(usage.groups)}
    for domain in ("code", "prose"):
        counts = {key: bank.activations[by_domain[domain]] // 50 for key, bank in usage.banks.items()}
        assert usage.likeliest_domain(counts) == domain
    assert usage.likeliest_domain({BankKey("text", 9, "mlp"): np.ones(8, np.int64)}) is None
    assert usage.likeliest_domain({FIRST: np.zeros(8, np.int64)}) is None


def test_names_that_nothing_was_recorded_of_are_refused_with_those_there_are(planted):
    usage = Usage.open(planted)
    with pytest.raises(UsageError, match="code"):
        usage.expected(domain="cod")
    with pytest.raises(UsageError, match="text"):
        usage.expected(modalities={"audio"})


def test_another_models_profile_is_refused(planted):
    with pytest.raises(ProfileIdentityError, match="another model"):
        Usage.open(planted, "f" * 32)


def test_a_damaged_counter_is_an_error(planted):
    from sqlalchemy import update

    from coterie.profiles import tables

    with ProfileDatabase(planted) as database, database.writing() as connection:
        connection.execute(update(tables.counts).values(tokens=1))
    with pytest.raises(ProfileFormatError, match="damaged"):
        Usage.open(planted)
