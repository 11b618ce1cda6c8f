import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import UsageError
from coterie.evaluate import plan_windows


@given(tokens=st.integers(2, 300), context=st.integers(1, 80), share=st.floats(0.01, 1))
def test_every_token_but_the_first_is_predicted_exactly_once(tokens: int, context: int, share: float) -> None:
    stride = max(1, int(share * context))
    windows = plan_windows(tokens, context, stride)
    predicted = [position for window in windows for position in range(tokens)[window.predicted]]
    assert predicted == list(range(1, tokens))
    for window in windows:
        inputs = range(tokens)[window.inputs]
        assert len(inputs) <= context
        # A prediction belongs to the input before it: the last `window.tokens` rows of the logits are the predictions.
        assert inputs[-window.tokens :] == range(window.first - 1, window.stop - 1)
        assert window.first - window.start >= min(window.first, context - stride + 1)


def test_without_a_stride_no_token_is_computed_twice() -> None:
    windows = plan_windows(1000, 256)
    inputs = [position for window in windows for position in range(1000)[window.inputs]]
    assert inputs == list(range(999))
    assert [window.tokens for window in windows] == [256, 256, 256, 231]


def test_a_text_of_one_token_has_no_window() -> None:
    assert plan_windows(1, 8) == []


@pytest.mark.parametrize(("context", "stride", "wrong"), [(0, None, "context"), (8, 0, "stride"), (8, 9, "stride")])
def test_what_is_out_of_range_is_refused(context: int, stride: int | None, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        plan_windows(20, context, stride)
