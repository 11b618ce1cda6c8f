import pytest
import torch
from safetensors import safe_open

from coterie.analysis import Routers
from coterie.errors import UsageError
from coterie.spec import BankKey
from zoo import MATRIX


@pytest.mark.parametrize(
    "name", ["qwen3_moe", "mixtral", "gpt_oss", "phimoe", "granitemoe", "ernie4_5_moe", "ernie4_5_vl_moe", "jetmoe"]
)
def test_rows_are_those_of_the_loaded_model(name, zoo_checkpoint, zoo_stock):
    if name in MATRIX and MATRIX[name].why_not:
        pytest.skip(MATRIX[name].why_not)
    routers = Routers.open(zoo_checkpoint(name))
    assert routers.banks
    assert not routers.unsupported
    parameters = [parameter.detach() for parameter in zoo_stock(name).parameters() if parameter.ndim == 2]
    for key in routers.banks:
        rows = torch.from_numpy(routers.read(key).rows).float()
        assert any(one.shape == rows.shape and torch.equal(one, rows) for one in parameters), key


def test_a_store_gives_the_same_as_its_checkpoint(zoo_checkpoint, zoo_store):
    checkpoint, store = Routers.open(zoo_checkpoint("qwen3_moe")), Routers.open(zoo_store("qwen3_moe", experts="0-2"))
    assert checkpoint.banks == store.banks
    assert checkpoint.identity == store.identity
    for key in checkpoint.banks:
        assert (checkpoint.read(key).rows == store.read(key).rows).all()


def test_components_of_a_whole_model(zoo_checkpoint):
    path = zoo_checkpoint("qwen3_omni")
    assert {key.component for key in Routers.open(path).banks} == {"talker", "thinker"}
    alone = Routers.open(path, component="talker")
    assert {key.component for key in alone.banks} == {"talker"}
    with safe_open(path / "model.safetensors", "pt") as file:
        name = alone.banks[BankKey("talker", 0, "mlp")]
        assert (alone.read(BankKey("talker", 0, "mlp")).rows == file.get_tensor(name).double().numpy()).all()


def test_stores_have_no_revisions(zoo_store):
    with pytest.raises(UsageError, match="only repositories of the Hub"):
        Routers.open(zoo_store("qwen3_moe"), revision="main")
