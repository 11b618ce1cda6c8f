"""A tiny store: two components, three banks, two schemes, a weightless expert, sharded or single dense part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from coterie.spec import BankKey, RecordLayout
from coterie.store import (
    BankPlan,
    DenseTensor,
    Manifest,
    ModelFacts,
    PlannedExpert,
    SourceFacts,
    StorePlan,
    StoreWriter,
)
from coterie.store.syscalls import SystemCalls

THINKER = BankKey("thinker", 0, "mlp")
THINKER_1 = BankKey("thinker", 1, "mlp")
TALKER = BankKey("talker", 0, "mlp")

NATIVE = RecordLayout.build("gate_up|down", [("gate_up_proj", "BF16", (24, 80)), ("down_proj", "BF16", (80, 12))])
SMALL = RecordLayout.build("gate_up|down/small", [("gate_up_proj", "BF16", (3, 5)), ("down_proj", "BF16", (5, 3))])
INT4 = RecordLayout.build(
    "int4", [("gate_up_proj_int4", "U8", (24, 40)), ("gate_up_proj_int4_scales", "BF16", (24, 2, 2))]
)

SIDE_FILES = {"config.json": b'{"model_type": "tiny"}\n', "tokenizer.json": b"{}\n", "sub/chat_template.jinja": b""}


def content(what: str, nbytes: int) -> bytes:
    """Bytes that depend on nothing but their name."""
    return hashlib.shake_128(what.encode()).digest(nbytes)


def record_bytes(key: BankKey, expert: int, layout: RecordLayout) -> bytes:
    record = bytearray(layout.nbytes)
    for field in layout.fields:
        end = field.offset + field.nbytes
        record[field.offset : end] = content(f"{key}/{expert}/{field.name}", field.nbytes)
    return bytes(record)


def make_plan(
    experts: Iterable[int] = range(6), *, integrity: str = "ab" * 16, layers: Sequence[BankKey] | None = None
) -> StorePlan:
    """Experts for every bank: expert 2 is INT4 everywhere, the talker's are small, its expert 5 is weightless."""
    chosen = tuple(experts)

    def bank(key: BankKey, layout: RecordLayout, weightless: tuple[int, ...] = ()) -> BankPlan:
        wanted = chosen if layers is None or key in layers else ()
        return BankPlan(
            key=key,
            num_experts=6,
            top_k=2,
            sources=(f"{key.component}.layers.{key.layer}.mlp.experts.*",),
            weightless=weightless,
            experts=tuple(
                PlannedExpert(expert=one, scheme="int4", layout=INT4)
                if one == 2
                else PlannedExpert(expert=one, scheme="native", layout=layout)
                for one in wanted
                if one not in weightless
            ),
        )

    return StorePlan(
        model=ModelFacts(class_name="TinyForCausalLM", model_type="tiny", component=None, identity="cd" * 16),
        source=SourceFacts(name="org/tiny", revision="f" * 40, integrity=integrity),
        banks=(bank(THINKER_1, NATIVE), bank(THINKER, NATIVE), bank(TALKER, SMALL, (5,))),
        files=tuple(SIDE_FILES),
        ignored=("mtp.0.weight", "mtp.0.bias"),
    )


def dense_tensors() -> list[DenseTensor]:
    def tensor(name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> DenseTensor:
        data = content(name, nbytes)
        return DenseTensor(name=name, dtype=dtype, shape=shape, chunks=lambda: [data[:100], data[100:]])

    return [
        tensor("embed.weight", "BF16", (64, 40), 64 * 40 * 2),
        tensor("norm.weight", "F32", (40,), 160),
        tensor("mask", "BOOL", (3,), 3),
        tensor("empty", "F32", (0, 4), 0),
        tensor("lm_head.weight", "BF16", (64, 40), 64 * 40 * 2),
    ]


def write_bank(writer: StoreWriter, key: BankKey, order: Callable[[Sequence[int]], Sequence[int]] = tuple) -> None:
    with writer.bank(key) as out:
        for expert in order(out.experts):
            out.write(expert, memoryview(record_bytes(key, expert, out.layout(expert))))


def write_store(
    path: Path, plan: StorePlan | None = None, *, calls: SystemCalls | None = None, shard_limit: int = 6000
) -> Manifest:
    """Writes, resumes or grows a store with whatever is missing from it."""
    with StoreWriter.open(path, plan or make_plan(), calls=calls) as writer:
        for key in writer.missing_banks():
            write_bank(writer, key)
        if not writer.dense_done:
            writer.write_dense(dense_tensors(), shard_limit=shard_limit)
        for name in writer.missing_files():
            writer.write_file(name, SIDE_FILES[name])
        return writer.finish()


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every file with its bytes and every directory with None."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }
