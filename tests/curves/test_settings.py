import pytest

from coterie.curves import CurveAxes
from coterie.errors import UsageError


def labels(axes: CurveAxes, *, profile: bool = False) -> list[str]:
    return [setting.label for setting in axes.checked(profile=profile).settings(profile=profile)]


def test_without_anything_varied_coverage_is() -> None:
    assert labels(CurveAxes(missing=("mask", "drop"))) == [
        "28% experts, by id, mask",
        "28% experts, by id, drop",
        "60% experts, by id, mask",
        "60% experts, by id, drop",
        "100% experts",
    ]


def test_a_profile_adds_what_it_knows_to_choose_by() -> None:
    axes = CurveAxes(coverage=("3",), missing=("mask",), domains=("code",))
    assert [(one.by, one.domain) for one in axes.settings(profile=True)] == [
        ("id", None),
        ("frequency", None),
        ("frequency", "code"),
        ("reap", None),
        ("reap", "code"),
    ]


def test_each_axis_is_varied_by_itself() -> None:
    axes = CurveAxes(
        experts_per_token=(1, 2, 1), schemes=("int4",), expert_schemes=("a.json",), stores=("s",), drop_cold=(0.1,)
    )
    assert labels(axes) == [
        "1 experts per token",
        "2 experts per token",
        "int4",
        "a.json",
        "s",
        "drop-cold 0",
        "drop-cold 0.1",
    ]
    assert [one.in_steps for one in axes.settings(profile=False)] == [False] * 5 + [True] * 2


def test_a_search_alone_has_no_points_of_its_own() -> None:
    axes = CurveAxes(smallest=(0.01,))
    assert axes.checked(profile=True).settings(profile=True) == []
    assert (axes.search_by, CurveAxes(by=("id", "reap")).search_by) == (("ean",), ("reap",))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (CurveAxes(coverage=("0%",)), "'0%' is not a number or share"),
        (CurveAxes(by=("reep",)), "Unknown way to choose experts 'reep'. Did you mean 'reap'"),
        (CurveAxes(missing=("fetch",)), "Unknown missing policy 'fetch'"),
        (CurveAxes(missing=()), "Nothing is said"),
        (CurveAxes(scope="bank"), "Unknown scope 'bank'"),
        (CurveAxes(schemes=("int9",)), "Unknown scheme 'int9'"),
        (CurveAxes(experts_per_token=(0,)), "at least 1, not 0"),
        (CurveAxes(drop_cold=(1.5,)), "up to 1, not 1.5"),
        (CurveAxes(smallest=(0.0,)), "above 0, not 0.0"),
        (CurveAxes(by=("reap",)), "Choosing experts by reap goes by what a profile"),
        (CurveAxes(smallest=(0.01,)), "for a domain goes by what a profile"),
        (CurveAxes(domains=("code",)), "for a domain goes by what a profile"),
    ],
)
def test_what_cannot_be_is_said(axes: CurveAxes, message: str) -> None:
    with pytest.raises(UsageError) as found:
        axes.checked(profile=False)
    assert message in str(found.value)


def test_a_search_goes_by_a_profile() -> None:
    with pytest.raises(UsageError, match="Choose by one of frequency, reap, ean"):
        CurveAxes(by=("id",), smallest=(0.01,)).checked(profile=True)


@pytest.mark.parametrize(
    ("axes", "profile", "message"),
    [
        (CurveAxes(schemes=("int4",), by=("id",)), False, "A way to choose experts is given"),
        (CurveAxes(schemes=("int4",), domains=("code",)), True, "A choice by domain is given"),
        (CurveAxes(experts_per_token=(1,), missing=("mask",)), False, "A policy for absent experts"),
        (CurveAxes(drop_cold=(0.1,), scope="model"), False, "A scope"),
        (CurveAxes(drop_cold=(0.1,)), True, "A profile is given, and at every point all experts are there"),
    ],
)
def test_what_has_no_effect_is_said(axes: CurveAxes, profile: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        axes.checked(profile=profile)
