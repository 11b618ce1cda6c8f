import json
import shutil

import pytest

import coterie
from coterie.errors import ChecksumError, CoterieError, StoreError
from coterie.origins.side_files import side_files
from coterie.store import Refreshed, Store, refresh_files, verify_store


@pytest.fixture
def store(zoo_store, tmp_path):
    made = tmp_path / "store"
    shutil.copytree(zoo_store("qwen3_moe"), made)
    return made


def test_edited_files_are_taken_over(store) -> None:
    (store / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    (store / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(CoterieError):
        Store.open(store)
    done = refresh_files(store, side_files(store))
    assert (done.changed, done.added, done.removed) == (("generation_config.json",), ("chat_template.jinja",), ())
    assert not verify_store(store).problems
    coterie.load(store, expert_memory="100%").coterie.close()
    (store / "chat_template.jinja").unlink()
    assert refresh_files(store, side_files(store)).removed == ("chat_template.jinja",)
    assert refresh_files(store, side_files(store)) == Refreshed(changed=(), added=(), removed=())


def test_the_configuration_stays(store) -> None:
    config = json.loads((store / "config.json").read_text())
    (store / "config.json").write_text(json.dumps(config | {"rope_theta": 7}))
    before = (store / "coterie.json").read_bytes()
    with pytest.raises(StoreError, match=r"config\.json"):
        refresh_files(store, side_files(store))
    assert (store / "coterie.json").read_bytes() == before


def test_damaged_weights_stay_damaged(store) -> None:
    data = bytearray((store / "dense.safetensors").read_bytes())
    data[-1] ^= 1
    (store / "dense.safetensors").write_bytes(data)
    refresh_files(store, side_files(store))
    assert verify_store(store).problems
    with pytest.raises(ChecksumError):
        coterie.load(store, expert_memory="100%")
