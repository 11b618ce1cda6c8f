"""The reference of metrics lists what the server has, and how."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

import coterie
from coterie.generation.governor import Governor
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefix_folder import PrefixFolder
from coterie.generation.prefixes import Prefixes
from coterie.server.meters import Meters

from .pages import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()
BY_LAYER = ("component", "layer", "bank")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    meters = Meters()
    copy = PrefixCopy(PrefixFolder(tmp_path_factory.mktemp("own") / "prefixes", 1 << 20), b"")
    with coterie.load("bundled", memory="2GiB") as model:
        opened = SimpleNamespace(runtime=model.coterie)
        engine = SimpleNamespace(
            opened=opened, governor=Governor(model.coterie), prefixes=Prefixes(0, copy=copy), running=0, waiting=0
        )
        meters.watch(engine)
        yield list(meters.registry.collect()), meters


def listed() -> dict[str, tuple[str, frozenset[str]]]:
    """Name → kind and labels."""
    rows = re.findall(r"^\| `(coterie_\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(rows)
    by_layer = "".join(f"`{label}`" for label in BY_LAYER)
    return {
        name: (kind, frozenset(re.findall(r"`(\w+)`", by_layer if name.startswith("coterie_layer_") else labels)))
        for name, kind, labels in rows
    }


def test_every_metric_stands_in_the_reference_with_its_kind(watched: Any) -> None:
    families, _ = watched
    assert {name: kind for name, (kind, _) in listed().items()} == {one.name: one.type for one in families}


def test_labels_are_those_of_the_reference(watched: Any) -> None:
    families, meters = watched
    of_counters = {
        one._name: frozenset(one._labelnames) for one in vars(meters).values() if hasattr(one, "_labelnames")
    }
    page = {name: labels for name, (_, labels) in listed().items()}
    for family in families:
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert labels <= {page[family.name]}, family.name
    for name, labels in of_counters.items():
        assert page[name] == labels, name


def test_names_elsewhere_on_the_page_and_on_that_of_the_server_are_metrics() -> None:
    names = set(listed())
    for page in (PAGE, (ROOT / "docs" / "serve.md").read_text()):
        for name in re.findall(r"coterie_[a-z0-9_]+", page):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in names, name
