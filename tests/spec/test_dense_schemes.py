"""Schemes of linear layers outside experts: what users write, and what it comes to."""

from __future__ import annotations

import pytest

from coterie.errors import UsageError
from coterie.spec import SCHEME_NAMES
from coterie.spec.dense_parts import DENSE_PARTS, SCHEMED_PARTS
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, SPEAKING, DenseRequest, DenseSchemes

OMNI = ("attention", "head", "encoders", "talker", "predictor")


def settled(given, parts=OMNI, otherwise=NATIVE_EVERYWHERE) -> str:
    return str(DenseRequest.parse(given).settle(parts, otherwise, "Model"))


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_one_scheme_is_for_every_part_but_the_code_predictor(scheme: str) -> None:
    for given in (scheme, f"rest={scheme}", {"rest": scheme}):
        assert settled(given) == scheme
    schemes = DenseSchemes(scheme)
    assert {schemes.of(part) for part in SCHEMED_PARTS if part != "predictor"} == {scheme}
    assert {schemes.of(part) for part in DENSE_PARTS if part not in SCHEMED_PARTS} == {"native"}
    assert schemes.of("predictor") == "native"


def test_parts_are_named_and_the_rest_stays_as_it_would_be() -> None:
    assert settled("talker=int4") == "attention=native,head=native,encoders=native,talker=int4,predictor=native"
    assert settled(" talker = int4 ", otherwise=DenseSchemes("int8")) == (
        "attention=int8,head=int8,encoders=int8,talker=int4,predictor=native"
    )
    assert settled({"encoders": "native"}, otherwise=SPEAKING) == (
        "attention=int8,head=int8,encoders=native,talker=int8,predictor=int8"
    )
    assert settled("encoders=native,predictor=int8,rest=int4") == (
        "attention=int4,head=int4,encoders=native,talker=int4,predictor=int8"
    )
    assert settled(None, otherwise=SPEAKING) == settled("encoders=native,predictor=int8,rest=int8")


def test_there_is_one_form_of_each_choice() -> None:
    assert settled("attention=int8,head=int8", ("attention", "head")) == "int8"
    assert settled("attention=native,predictor=native") == "native"
    mixed = settled("head=native,attention=int8", ("attention", "head"))
    assert mixed == settled("rest=native,attention=int8", ("head", "attention")) == "attention=int8,head=native"
    assert settled(mixed, ("attention", "head")) == mixed
    # A model without linear layers that could be in one.
    assert settled("int8", ()) == settled(None, (), DenseSchemes("int8")) == "int8"


def test_the_lossy_schemes_of_a_store() -> None:
    assert DenseSchemes("native").lossy == ()
    assert DenseSchemes("int8").lossy == ("int8",)
    assert DenseSchemes.of_parts({"attention": "int8", "head": "int4", "encoders": "native"}).lossy == ("int4", "int8")


@pytest.mark.parametrize("part", [name for name in DENSE_PARTS if name not in SCHEMED_PARTS])
def test_what_always_keeps_its_bits_may_be_named_as_such_only(part: str) -> None:
    assert settled(f"{part}=native") == "native"
    with pytest.raises(UsageError, match=rf"'{part}' cannot be stored as int8: .*Parts that can: attention, "):
        DenseRequest.parse({part: "int8"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("int44", "Unknown scheme 'int44'. Did you mean 'int4'?"),
        ("", "Unknown scheme ''"),
        ("attention=int44", "Unknown scheme 'int44'. Did you mean 'int4'?"),
        ("atention=int8", "Unknown part 'atention'. Did you mean 'attention'? Valid: 'attention', 'encoders', "),
        ("attention=int8,attention=int4", "'attention' is given two schemes"),
        ("attention=int8,int4", "'int4' in 'attention=int8,int4' names no part"),
        ("attention=int8,", "'' in 'attention=int8,' names no part"),
        ({"attention": 8}, "says no scheme of any part"),
        (8, "says no scheme of any part"),
    ],
)
def test_what_nobody_can_mean(given: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DenseRequest.parse(given)
    assert message in str(caught.value)


def test_a_part_that_a_model_lacks_names_those_that_it_has() -> None:
    with pytest.raises(UsageError, match=r"Model has no part 'talker' .* It has: 'attention', 'head'\."):
        settled("talker=int8", ("head", "attention"))


def test_four_bits_for_the_code_predictor_have_to_be_named_and_are_warned_of() -> None:
    assert DenseRequest.parse("int4").cautions == DenseRequest.parse("predictor=int8").cautions == ()
    (caution,) = DenseRequest.parse("predictor=int4").cautions
    assert caution.startswith("predictor=int4: four bits there are known to degrade long speech")


def test_whether_anything_is_rounded() -> None:
    assert DenseRequest.parse(None).only_native
    assert DenseRequest.parse("attention=native,rest=native").only_native
    assert not DenseRequest.parse("attention=native,rest=int8").only_native
    assert not DenseRequest.parse({"head": "int4"}).only_native
