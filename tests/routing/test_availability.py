import pytest
import torch

from coterie.errors import UsageError
from coterie.routing import Availability


def test_counts_and_absent_ids():
    bank = Availability.of([0, 3, 3], num_experts=5, top_k=2)
    assert bank.available.tolist() == [True, False, False, True, False]
    assert bank.count == 2
    assert bank.absent == (1, 2, 4)
    assert not bank.complete
    assert Availability.of(range(5), num_experts=5, top_k=2).complete


@pytest.mark.parametrize("expert", [-1, 5])
def test_unknown_experts_are_refused(expert):
    with pytest.raises(UsageError, match="experts 0 to 4"):
        Availability.of([expert], num_experts=5, top_k=2)


@pytest.mark.parametrize(
    ("available", "top_k", "message"),
    [
        (torch.ones(4, dtype=torch.bool), 2, r"bool \[5\]"),
        (torch.ones(5), 2, r"bool \[5\]"),
        (torch.ones(5, dtype=torch.bool), 6, "top_k is 6"),
        (torch.ones(5, dtype=torch.bool), 0, "top_k is 0"),
    ],
)
def test_what_does_not_fit_is_refused(available, top_k, message):
    with pytest.raises(UsageError, match=message):
        Availability(num_experts=5, top_k=top_k, available=available)
