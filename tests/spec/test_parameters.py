"""Which fields of a record make which parameter, in every encoding."""

from __future__ import annotations

import pytest

from coterie.errors import LoadError
from coterie.spec import SCHEME_NAMES, RecordLayout
from coterie.spec.encodings import NVFP4, SCHEME_FORMATS
from coterie.spec.parameters import checkpoint_encoding, dequantised_nbytes, plan_record, precision, uses_scheme

FIELDS = {
    "fp8": [("up", "F8_E4M3", (256, 128)), ("up_scale_inv", "F32", (2, 1))],
    "mxfp4": [("up_blocks", "U8", (128, 8, 16)), ("up_scales", "U8", (128, 8))],
    "int4": [("up_int4", "U8", (256, 64)), ("up_int4_scales", "BF16", (256, 2, 2))],
    "int8, transposed": [("up_int8t", "I8", (128, 256)), ("up_int8t_scales", "BF16", (128, 4))],
    "plain": [("up", "BF16", (256, 128))],
}


@pytest.mark.parametrize("encoding", FIELDS)
def test_fields_are_planned_by_their_names(encoding):
    layout = RecordLayout.build("x", FIELDS[encoding])
    (stored,) = plan_record(layout, {"up": (256, 128)}, "here").values()
    name = None if stored.encoding is None else stored.encoding.name
    assert name == (None if encoding == "plain" else encoding.partition(",")[0])
    assert stored.transposed == encoding.endswith("transposed")
    assert checkpoint_encoding(layout) == (name if encoding in ("fp8", "mxfp4") else None)
    assert uses_scheme(layout) == encoding.startswith("int")
    assert precision(layout) == (name or "bf16")
    assert stored.positions == tuple(range(len(layout.fields)))
    assert dequantised_nbytes(layout, 2) == (0 if encoding == "plain" else 2 * 256 * 128)


@pytest.mark.parametrize(
    "fields",
    [
        [("up", "F8_E5M2", (256, 128)), ("up_scale_inv", "F32", (2, 1))],
        [("up", "F8_E4M3", (256, 128)), ("up_scale_inv", "I32", (2, 1))],
        [("up", "F8_E4M3", (256, 128)), ("up_scale_inv", "F32", (3, 1))],
        [("up", "F8_E4M3", (256, 128)), ("up_scale_inv", "F32", (2,))],
        [("up", "F8_E4M3", (128, 256)), ("up_scale_inv", "F32", (2, 1))],
        [("up_blocks", "U8", (128, 8, 16))],
        [("up_blocks", "U8", (128, 8, 8)), ("up_scales", "U8", (128, 8))],
        [("up_blocks", "U8", (256, 4, 16)), ("up_scales", "U8", (256, 4))],
        [("up_blocks", "I8", (128, 8, 16)), ("up_scales", "U8", (128, 8))],
        [("up_scale_inv", "F32", (2, 1))],
        [("up_int4", "U8", (256, 64)), ("up_int4_scales", "BF16", (256, 2))],
        [("up_int8t", "I8", (256, 128)), ("up_int8t_scales", "BF16", (256, 2))],
        [("up_int8", "I8", (256, 128))],
        [("up", "BF16", (256, 128)), ("more", "F32", (2, 1))],
    ],
)
def test_fields_that_make_no_parameter_are_refused(fields):
    with pytest.raises(LoadError, match="The experts of here have fields"):
        plan_record(RecordLayout.build("x", fields), {"up": (256, 128)}, "here")


def test_codes_and_scales_fit_together_where_some_matrix_has_both():
    for columns in (1, 31, 32, 63, 64, 65, 96, 127, 128):
        for scheme in SCHEME_FORMATS.values():
            codes, scales = scheme.parts(3, columns)
            if scheme is NVFP4 and columns % 16:
                assert not scheme.fits(codes, scales, (3, columns))
                continue
            assert scheme.fits(codes, scales, (3, columns))
            assert scheme.fit_together(codes, scales)
            (dtype, (_, count, *pair)) = scales
            assert not scheme.fit_together(codes, (dtype, (3, count + 1, *pair)))
            assert not scheme.fit_together(codes, ("I32", scales[1]))
            assert not scheme.fit_together((codes[0], (3, *codes[1])), scales)


def test_schemes_are_named_from_the_smallest():
    assert SCHEME_NAMES == ("int2", "int3", "int4", "int5", "int6", "int8", "native")
    assert [SCHEME_FORMATS[name].bits for name in SCHEME_NAMES[:-1]] == [2.5, 3.5, 4.5, 5.5, 6.5, 8.25]
