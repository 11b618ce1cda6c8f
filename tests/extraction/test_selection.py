import pytest

from coterie.errors import UsageError
from coterie.extraction.selection import select_experts
from coterie.spec import BankKey

BANKS = {BankKey("text", layer, "mlp"): 8 for layer in (1, 2, 3)} | {BankKey("talker", 1, "mlp"): 4}


def chosen(experts=None, layers=None) -> dict[str, tuple[int, ...]]:
    return {str(key): ids for key, ids in select_experts(BANKS, experts, layers).items()}


def test_everything_by_default() -> None:
    assert {len(ids) for key, ids in chosen().items() if key.startswith("text")} == {8}
    assert chosen()["talker/mlp-layer-001"] == (0, 1, 2, 3)


def test_experts_apply_to_every_layer_and_to_smaller_banks_as_far_as_they_have_them() -> None:
    found = chosen("2-3,6")
    assert found["text/mlp-layer-001"] == found["text/mlp-layer-003"] == (2, 3, 6)
    assert found["talker/mlp-layer-001"] == (2, 3)


def test_other_layers_keep_all_experts() -> None:
    found = chosen([5, 0], layers="1-2")
    assert found["text/mlp-layer-001"] == found["text/mlp-layer-002"] == (0, 5)
    assert found["text/mlp-layer-003"] == tuple(range(8))


@pytest.mark.parametrize("experts", ["1-2:0,5; 3:7", {1: "0,5", 2: [5, 0], 3: [7]}])
def test_experts_by_layer(experts) -> None:
    found = chosen(experts)
    assert found["text/mlp-layer-001"] == found["text/mlp-layer-002"] == (0, 5)
    assert found["text/mlp-layer-003"] == (7,)


def test_layers_not_named_keep_all_experts() -> None:
    found = chosen("2:1")
    assert found["text/mlp-layer-002"] == (1,)
    assert found["text/mlp-layer-001"] == found["text/mlp-layer-003"] == tuple(range(8))


def test_layers_without_experts_are_refused_because_depth_is_never_cut() -> None:
    with pytest.raises(UsageError, match=r"depth of a model is never cut.*--experts 0-7"):
        chosen(layers="1")


@pytest.mark.parametrize(
    ("experts", "layers", "message"),
    [
        ("0-8", None, "experts 8 does not exist: the model has experts 0 to 7"),
        ([3, 9], None, "experts 9 does not exist: the model has experts 0 to 7"),
        ([-1], None, "experts -1 does not exist"),
        ([True], None, "experts True does not exist"),
        ([], None, "selection of experts is empty"),
        ("0", "4", "layers 4 does not exist: the model has layers 0 to 3"),
        ("0", [0], "None of the selected layers has experts; the first layer that has is 1"),
        ("x", None, "'x' is not a selection of experts"),
        ("5-2", None, "runs backwards"),
        ("1:0;2", None, "'2' does not say in which layers"),
        ("1-2:0;2:1", None, "Layer 2 is named twice"),
        ("1:9", None, "experts 9 does not exist"),
        ({4: "0"}, None, "layers 4 does not exist"),
        ("1:0", "1", "selected by layer already"),
        ("0:1", None, "None of the selected layers has experts"),
    ],
)
def test_wrong_selections_name_the_range(experts, layers, message) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(experts, layers)
