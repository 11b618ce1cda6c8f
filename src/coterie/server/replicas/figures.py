"""What several processes count, as one text for Prometheus: each figure says whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"
"""Whose a figure is."""


def joined(texts: Mapping[str, bytes]) -> bytes:
    """One text of several.

    Args:
        texts: Whose → its text.
    """
    registry = CollectorRegistry()
    registry.register(_Joined(texts))
    return generate_latest(registry)


class _Joined(Collector):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._families: dict[str, Metric] = {}
        for whose, text in texts.items():
            for family in text_string_to_metric_families(text.decode()):
                kept = self._families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for one in family.samples:
                    kept.add_sample(one.name, {**one.labels, LABEL: whose}, one.value)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()
