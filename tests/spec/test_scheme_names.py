"""Names of schemes: what there is, what weights are quantised to, and a size of groups beside a name."""

from __future__ import annotations

import pytest

from coterie.errors import UsageError
from coterie.spec.encodings import (
    GROUPS,
    NUMBERS,
    NVFP4,
    SCALE_DTYPES,
    SCHEME_FORMATS,
    SCHEMES_MADE_HERE,
    scheme_name,
    scheme_of_codes,
)
from coterie.spec.scheme_names import check_made_here, check_scheme, with_group


def test_a_name_says_what_is_not_usual() -> None:
    assert scheme_name(4) == "int4"
    assert scheme_name(4, 128) == "int4-g128"
    assert scheme_name(4, 32, "sym", "F16") == "int4-g32-sym-f16"
    assert scheme_name(4, 64, "zp") == "int4-zp"
    assert scheme_name(8, 64, "sym") == "int8"
    assert scheme_name(8, 128, "zero", "F32") == "int8-g128-zero-f32"


def test_names_and_formats_say_the_same() -> None:
    for name, form in SCHEME_FORMATS.items():
        assert form.name == name
        assert form.group in GROUPS or form is NVFP4
        assert scheme_name(form.code_bits, form.group, form.numbers, form.scale_dtype) == name
    assert {form.numbers for form in SCHEME_FORMATS.values()} == set(NUMBERS)
    assert {form.scale_dtype for form in SCHEME_FORMATS.values()} == {*SCALE_DTYPES, "F8_E4M3"}
    assert len(SCHEMES_MADE_HERE) == 18


@pytest.mark.parametrize(
    "wanted", [(4, 16, "sym", "BF16"), (3, 64, "sym", "BF16"), (7, 64, "zero", "BF16"), (8, 64, "zp", "F16")]
)
def test_what_is_no_scheme_is_refused(wanted: tuple[int, int, str, str]) -> None:
    with pytest.raises(UsageError, match="There is no scheme"):
        scheme_name(*wanted)  # type: ignore[arg-type]


def test_codes_name_their_scheme_and_their_scales() -> None:
    for form in SCHEME_FORMATS.values():
        for codes, scales in form.ends:
            assert scheme_of_codes(f"gate_up_proj{codes}") == (form, f"gate_up_proj{scales}")
            assert form.scales_of(f"gate_up_proj{codes}") == f"gate_up_proj{scales}"
            assert scheme_of_codes(f"gate_up_proj{scales}") is None
    for name in ("gate_up_proj", "int4", "down_proj_int4-g64", "down_proj_blocks"):
        assert scheme_of_codes(name) is None


def test_a_size_of_groups_belongs_to_one_scheme_that_names_none() -> None:
    assert with_group("int4", 128) == "int4-g128"
    assert with_group("int8", 32) == "int8-g32"
    assert with_group("int3", 64) == "int3"
    assert with_group(None, None) is None
    assert with_group("trust:top25%=native,rest=int4", None) == "trust:top25%=native,rest=int4"
    for scheme in (None, "native", "int4-g32", "trust:top25%=native,rest=int4"):
        with pytest.raises(UsageError, match=r"a size, 128.*--scheme int4 --group 128"):
            with_group(scheme, 128)
    with pytest.raises(UsageError, match=r"size of a group '48'.*64"):
        with_group("int4", 48)


def test_what_checkpoints_alone_have_is_known_and_nothing_is_quantised_to_it() -> None:
    for name in ("native", "int4", "int4-g128", "int4-g32-sym-f16"):
        check_scheme(name)
    with pytest.raises(UsageError, match="int4-g128"):
        check_scheme("int4-g129")
    for name in ("native", *SCHEMES_MADE_HERE):
        check_made_here(name)
    with pytest.raises(UsageError, match=r"quantised checkpoints.*Write int4-g32\."):
        check_made_here("int4-g32-sym-f16")
    with pytest.raises(UsageError, match=r"quantised checkpoints.*Write int4\."):
        check_made_here("nvfp4")
