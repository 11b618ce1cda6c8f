"""What ends up in a store, for all families: every tensor, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import coterie
from coterie.checkpoint import Checkpoint
from coterie.errors import DiskSpaceError, StoreError, UsageError
from coterie.extraction import ExtractionReport, Progress, extract, extraction
from coterie.extraction.copying import BUFFER_BYTES, scratch_nbytes, worker_count
from coterie.store import Store, verify_store
from zoo import ZOO

from .stores import as_bytes, decoded, present, snapshot, stored

NAMES = sorted(ZOO)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_every_family_is_there_bit_for_bit(name: str, zoo_checkpoint, tmp_path: Path) -> None:
    directory = zoo_checkpoint(name, torch.bfloat16)
    report = extract(directory, tmp_path / "store")
    assert report.status == "written"
    assert report.complete
    checkpoint, store = Checkpoint.open(directory), Store.open(tmp_path / "store")
    assert set(store.keys()) == set(checkpoint.keys())
    for key in checkpoint.keys():
        assert stored(store, key) == decoded(checkpoint, key), key
    found: dict[str, bytes] = {}
    for path in store.dense_files:
        with safe_open(path, "pt") as file:
            found.update({key: as_bytes(file.get_tensor(key)) for key in file.keys()})
    assert found == {key: as_bytes(checkpoint.read(key)) for key in checkpoint.keymap.dense}
    assert verify_store(tmp_path / "store").problems == ()


def test_components_with_experts_of_different_sizes_share_a_store(zoo_checkpoint, tmp_path: Path) -> None:
    extract(zoo_checkpoint("qwen3_omni"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    layouts = {key.component: store.layout(key.expert(0)) for key in store.banks}
    assert set(layouts) == {"thinker", "talker"}
    assert len({layout.name for layout in layouts.values()}) == len({layout.fields for layout in layouts.values()})


@pytest.mark.parametrize("component", ["thinker", "talker"])
def test_one_component_only(component: str, zoo_checkpoint, open_model, tmp_path: Path) -> None:
    report = extract(zoo_checkpoint("qwen3_omni"), tmp_path / "store", component=component)
    store = Store.open(tmp_path / "store")
    assert report.component == store.manifest.model.component == component
    assert store.manifest.model.model_type == f"qwen3_omni_moe_{component}"
    assert {key.component for key in store.banks} == {component}
    with safe_open(store.dense_files[0], "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {component}
    assert component.capitalize() in type(open_model(tmp_path / "store")).__name__


def test_the_component_that_a_checkpoint_is_needs_no_name(tmp_path: Path) -> None:
    extract("bundled", tmp_path / "store", experts="0")
    assert extract("bundled", tmp_path / "store", experts="0", component="thinker").status == "already complete"


@pytest.mark.filterwarnings("ignore:The tokenizer in")  # nothing but its name counts here
def test_files_beside_the_weights_are_copied(moe: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(moe, source)
    kept = ("tokenizer.json", "merges.txt", "chat_template.jinja", "README.md", "LICENSE", "preprocessor_config.json")
    dropped = ("training_args.bin", "modeling_x.py", "trainer_state.json", "old.safetensors.index.json", "log.csv")
    for name in (*kept, *dropped):
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    extract(source, tmp_path / "store", experts="0")
    for name in (*kept, "config.json", "additional_chat_templates/tools.jinja"):
        assert (tmp_path / "store" / name).read_bytes() == (source / name).read_bytes()
    assert not any((tmp_path / "store" / name).exists() for name in dropped)


@pytest.mark.parametrize("workers", [1, 3])
def test_twice_gives_the_same_bytes(workers: int, moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "one")
    extract(moe, tmp_path / "two", workers=workers)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_partial_store_has_what_was_asked_for(moe: Path, tmp_path: Path) -> None:
    report = extract(moe, tmp_path / "store", experts="0-2,7", layers=[1])
    assert present(tmp_path / "store") == {0: set(range(8)), 1: {0, 1, 2, 7}}
    assert (report.experts_present, report.experts_total, report.complete) == (12, 16, False)


def test_growing_adds_experts_and_touches_nothing_else(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    extract(moe, path, experts="0-3")
    before = snapshot(path)
    report = extract(moe, path, experts=[3, 6])
    assert report.status == "grown"
    assert present(path) == {0: {0, 1, 2, 3, 6}, 1: {0, 1, 2, 3, 6}}
    after = snapshot(path)
    assert {name: after[name] for name in before if name != "coterie.json"} == {
        name: data for name, data in before.items() if name != "coterie.json"
    }
    assert report.experts_present == 10
    assert coterie.verify(path, against=moe).problems == ()


def test_what_is_there_already_is_not_written_again(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", experts="0-3")
    before = snapshot(tmp_path / "store")
    report = extract(moe, tmp_path / "store", experts="1-2")
    assert (report.status, report.written_nbytes, report.needed_nbytes) == ("already complete", 0, 0)
    assert snapshot(tmp_path / "store") == before


def test_a_dry_run_tells_what_would_be_written_and_writes_nothing(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    planned = extract(moe, path, experts="0-4", dry_run=True)
    assert planned.status == "planned"
    assert not path.exists()
    done = extract(moe, path, experts="0-4")
    sizes = {file.file: file.nbytes for file in done.files}
    assert {file.file: file.nbytes for file in planned.files if file.file != "coterie.json"} == {
        name: nbytes for name, nbytes in sizes.items() if name != "coterie.json"
    }
    assert sizes == {name: len(data) for name, data in snapshot(path).items() if data is not None}
    assert planned.needed_nbytes >= done.store_nbytes
    more = extract(moe, path, dry_run=True)
    assert {file.file for file in more.files if not file.present} == {
        "experts/text/mlp-layer-000.1.safetensors",
        "experts/text/mlp-layer-001.1.safetensors",
        "coterie.json",
    }
    assert snapshot(path).keys() == sizes.keys() | {"experts", "experts/text"}


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    dry_run: bool, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match=r"needs .* are free.*--experts") as caught:
        extract(moe, tmp_path / "store", dry_run=dry_run)
    assert caught.value.needed > caught.value.free == 100_000
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_there_needs_no_space(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(moe, tmp_path / "store")
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert extract(moe, tmp_path / "store").status == "already complete"


def test_directories_that_are_refused(moe: Path, tmp_path: Path) -> None:
    source = tmp_path / "models" / "checkpoint"
    shutil.copytree(moe, source)
    link = tmp_path / "link"
    link.symlink_to(source)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    for target, error, message in (
        (source, UsageError, "is the checkpoint itself"),
        (link, UsageError, "is the checkpoint itself"),
        (source / "store", UsageError, "lies within the checkpoint"),
        (source.parent, UsageError, "contains the checkpoint"),
        (foreign, StoreError, "is not empty and is not a store: it holds 'thesis.tex'"),
        (foreign / "thesis.tex", StoreError, "is a file"),
    ):
        with pytest.raises(error, match=message):
            extract(source, target)
    assert sorted(path.name for path in source.iterdir()) == sorted(path.name for path in moe.iterdir())
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_the_name_of_the_bundled_model_is_none_for_a_store(moe: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bundled", "./bundled", Path("bundled")):
        with pytest.raises(UsageError, match="model in the package"):
            extract(moe, name)
        with pytest.raises(UsageError, match="model in the package"):
            coterie.quantize(moe, name, scheme="int4")
    assert list(tmp_path.iterdir()) == []
    assert extract(moe, tmp_path / "bundled").complete


def test_a_store_is_no_checkpoint(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store")
    with pytest.raises(UsageError, match=r"is a store.*coterie quantize"):
        extract(tmp_path / "store", tmp_path / "other")
    for model in (moe, tmp_path / "store"):
        with pytest.raises(UsageError, match=r"is a store.*that the store was made from"):
            coterie.verify(model, against=tmp_path / "store")
    extract(moe, tmp_path / "part", experts="0")
    with pytest.raises(UsageError, match=r"is a store.*as source"):
        coterie.load(tmp_path / "part", missing="fetch", source=tmp_path / "store")


def test_four_bits_are_spoken_of_where_nobody_chose_and_it_matters(moe: Path, tmp_path: Path, monkeypatch) -> None:
    told: list[ExtractionReport] = []
    assert extract(moe, tmp_path / "small", planned=told.append).int4_nbytes is None
    monkeypatch.setattr(extraction, "LARGE_NBYTES", 1)
    report = extract(moe, tmp_path / "native", planned=told.append)
    four = extract(moe, tmp_path / "four", scheme="int4", dense_scheme="int4")
    assert report.int4_nbytes is not None
    # Beside the tensors a store has headers, a manifest and small files.
    assert four.written_nbytes == report.int4_nbytes < report.written_nbytes
    for chosen in ({"scheme": "native"}, {"dense_scheme": "native"}, {"scheme": "int4"}):
        assert extract(moe, tmp_path / "x", **chosen, dry_run=True).int4_nbytes is None
    assert extract(moe, tmp_path / "native").int4_nbytes is None, "it is there already"
    assert [(one.status, one.int4_nbytes) for one in told] == [("planned", None), ("planned", report.int4_nbytes)]


def test_another_model_does_not_go_into_the_same_store(zoo_checkpoint, moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", experts="0")
    with pytest.raises(StoreError, match="cannot be grown"):
        extract(zoo_checkpoint("mixtral"), tmp_path / "store")


def test_progress_ends_at_the_total_with_time_left_in_between(moe: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    report = extract(moe, tmp_path / "store", progress=told.append)
    assert told[0].done == 0
    assert told[0].remaining_s is None
    assert told[-1].done == told[-1].total == report.written_nbytes
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert told[-1].remaining_s == 0
    assert all(one.remaining_s > 0 for one in told[1:-1] if one.done < one.total)


def test_an_exception_in_the_callback_ends_the_extraction_which_can_be_resumed(moe: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done > progress.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(moe, tmp_path / "store", progress=stop)
    assert extract(moe, tmp_path / "store").status == "resumed"
    extract(moe, tmp_path / "fresh")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "fresh")


def test_buffers_stay_within_bounds_whatever_the_size_of_an_expert(moe: Path) -> None:
    class Bank:
        def __init__(self, nbytes: int) -> None:
            self.layout = self
            self.nbytes = nbytes

    class Sized:
        def __init__(self, nbytes: int, plain: bool) -> None:
            self.model = self
            self.banks = {next(iter(Checkpoint.open(moe).banks)): Bank(nbytes)}
            self.plain = plain

        def extents(self, key: object) -> tuple[()] | None:
            return () if self.plain else None

    for nbytes in (4096, 10 * 2**20, 300 * 2**20, 2**31):
        for plain in (True, False):
            each = nbytes + scratch_nbytes(nbytes) if plain else 3 * nbytes
            count = worker_count(Sized(nbytes, plain))
            assert count == 1 or count * each <= BUFFER_BYTES
            assert count == 6 or (count + 1) * each > BUFFER_BYTES


def test_no_worker_is_wrong_usage(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="At least one worker"):
        extract(moe, tmp_path / "store", workers=0)
