"""Where the fields of a record lie, and what lies between them."""

from hypothesis import given
from hypothesis import strategies as st

from coterie.spec import FIELD_ALIGNMENT, RECORD_ALIGNMENT, RecordLayout


@given(st.lists(st.integers(0, 9000), max_size=6))
def test_fields_and_padding_are_the_record(sizes):
    layout = RecordLayout.build("x", [(f"f{number}", "U8", (size,)) for number, size in enumerate(sizes)])
    assert layout.nbytes % RECORD_ALIGNMENT == 0
    assert all(field.offset % FIELD_ALIGNMENT == 0 for field in layout.fields)
    runs = [(field.offset, field.offset + field.nbytes) for field in layout.fields if field.nbytes]
    position = 0
    for begin, end in sorted([*runs, *layout.padding]):
        assert begin == position < end
        position = end
    assert position == layout.nbytes
    assert sum(end - begin for begin, end in layout.padding) == layout.nbytes - layout.payload_nbytes
