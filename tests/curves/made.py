"""Curves that were not measured."""

import dataclasses

from coterie.curves import Curve, CurvePoint, Setting, SmallestSet
from coterie.evaluate import Comparison, Estimate, ModelFacts, Quality, Reads

MODEL = ModelFacts(name="tiny", kind="store", identity="0" * 32, experts=16, total_experts=16)
ONE = Estimate(value=1.0, low=0.9, high=1.1)


def point(kld: float, *, experts: int = 16, bits: float = 16.0, read: int | None = None, **setting) -> CurvePoint:
    figures = {field.name: ONE for field in dataclasses.fields(Comparison)}
    figures |= {name: 1.0 for name in figures if name.startswith("kld_")}
    found = Comparison(**figures | {"kld": Estimate(value=kld, low=0.0, high=2 * kld), "identical": 0})
    total = Quality(name="all", tokens=9, blocks=3, loss=ONE, perplexity=ONE, accuracy=ONE, comparison=found)
    reads = None
    if read is not None:
        names = [field.name for field in dataclasses.fields(Reads)]
        reads = Reads(**dict.fromkeys(names, 1) | {"bytes_read": read})
    return CurvePoint(
        setting=Setting(**setting), experts=experts, total_experts=16, expert_nbytes=1, bits=bits, token_nbytes=1,
        reads=reads, total=total, texts=(total,),
    )  # fmt: skip


def smallest(domain: str, experts: int) -> SmallestSet:
    return SmallestSet(
        domain=domain, bound=0.01, by="ean", missing="mask", experts=experts, total_experts=16, kld=ONE,
        expert_nbytes=1, gate_mass=0.5, chosen={"text/mlp-layer-000": (1, 2)}, evaluations=3,
    )  # fmt: skip


def curve_of(*points: CurvePoint, sets: tuple[SmallestSet, ...] = ()) -> Curve:
    return Curve(
        model=MODEL, against=MODEL, context=8, stride=8, limit=None, texts={"a": "a.txt"}, points=points, smallest=sets
    )
