"""What limits speed on this machine, measured in seconds: its disk, its memory bus, its processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from coterie import native
from coterie.files.nearest import nearest_directory
from coterie.kernels import quantised_linear, stock_linear
from coterie.plan.busyness import cores_of_others, processor_times
from coterie.plan.disk import measure_reads
from coterie.plan.disk_notes import DiskNotes
from coterie.quant import SCHEMES, dequantise_fp8, dequantise_mxfp4
from coterie.spec.encodings import CHECKPOINT_ENCODINGS, FP8, MXFP4, NVFP4, SCHEME_FORMATS, schemes_named

BF16 = "bf16"
"""The precision that is always measured, as :func:`coterie.spec.parameters.precision` names it."""

_QUANTISED = (*SCHEME_FORMATS, *(encoding.name for encoding in CHECKPOINT_ENCODINGS))

PROMPT_ROWS = 16
"""Tokens of a prompt that an expert gets at once, for which products are measured."""

_ROWS, _COLUMNS = 2048, 4096
_NBYTES = 128 * 2**20
"""Bytes of the matrices that are multiplied in turn: more than the processor's caches hold."""
_DECODED_NBYTES = 16 * 2**20
"""The same where each matrix is decoded before it is multiplied, which takes longer than reading it."""
_ROUNDS = 3
_QUANTISED_NBYTES = 32 * 2**20

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """How fast a disk reads past the page cache.

    Attributes:
        path: The directory that was asked about.
        random: Bytes per second of records of experts at random places, as many at once as suits the disk.
        sequential: Bytes per second in order; None if that was not measured.
    """

    path: str
    random: float
    sequential: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpeed:
    """How fast matrices in one precision are multiplied.

    Attributes:
        token: Bytes of weights per second with one row of activations, as decoding has it.
        prompt: Bytes of weights × rows per second with :data:`PROMPT_ROWS` rows, as a prompt has it.
    """

    token: float
    prompt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured.

    Attributes:
        threads: Threads for compute.
        disk: The disk; None if it was not measured.
        bus: Bytes per second that all threads read from memory.
        products: By precision.
        quantising: Bytes of bfloat16 weights per second that become ``int4`` codes.
        others: Processors' worth of time that other programs used meanwhile; None if that is not known.
    """

    threads: int
    disk: DiskSpeed | None
    bus: float
    products: Mapping[str, ProductSpeed]
    quantising: float
    others: float | None = None

    def product(self, precision: str) -> ProductSpeed:
        """How fast matrices in a precision are multiplied; what is not quantised counts as bfloat16.

        Of matrices in several precisions (``int2+int4``) that is the slowest one's speed.

        Raises:
            KeyError: If one was not measured.
        """
        found = [self.products[name if name in _QUANTISED else BF16] for name in schemes_named(precision)]
        return ProductSpeed(token=min(one.token for one in found), prompt=min(one.prompt for one in found))

    def knows(self, precisions: Iterable[str]) -> bool:
        """Whether products in all these precisions were measured."""
        names = (name for precision in precisions for name in schemes_named(precision))
        return all(name in self.products or name not in _QUANTISED for name in names)


def silent(line: str) -> None:
    """Stands for whoever wants to be told, where nobody does."""


def measure_machine(place: Path | None, *, record: int, precisions: Iterable[str], tell: Tell | None = None) -> Machine:
    """Measures for some seconds. Takes about 200 MiB of memory, and 128 MiB of disk for as long.

    Args:
        place: A directory on the disk, or a file; None leaves the disk out.
        record: Bytes of an expert.
        precisions: In which products are measured, beside bfloat16.
        tell: Called with a line about what is being measured.

    Raises:
        UsageError: If the disk cannot be written there.
    """
    before = processor_times()
    tell = tell or silent
    disk = None if place is None else _disk(place, record, tell)
    tell("reading memory")
    bus = _bus()
    products = {}
    for precision in dict.fromkeys([BF16, *sorted(name for one in precisions for name in schemes_named(one))]):
        tell(f"multiplying {precision} matrices")
        products[precision] = _product(precision)
    tell("quantising")
    quantising = _quantising()
    after = processor_times()
    others = None if before is None or after is None else cores_of_others(before, after)
    return Machine(
        threads=torch.get_num_threads(), disk=disk, bus=bus, products=products, quantising=quantising, others=others
    )


def _disk(place: Path, record: int, tell: Tell) -> DiskSpeed:
    """What is known of this disk from opening models, else a measurement."""
    directory = nearest_directory(place)
    known = DiskNotes().find(directory, record)
    if known is not None and known.tuning.trials:
        chosen = [one for one in known.tuning.trials if one.at_once == known.tuning.at_once]
        return DiskSpeed(path=str(directory), random=max(one.bytes_per_second for one in chosen))
    found = measure_reads(directory, progress=tell)
    random = [one for one in found if one.pattern == "random"]
    nearest = min((one.block for one in random), key=lambda block: abs(block - record))
    return DiskSpeed(
        path=str(directory),
        random=max(one.bytes_per_second for one in random if one.block == nearest),
        sequential=next(one.bytes_per_second for one in found if one.pattern == "sequential"),
    )


@torch.inference_mode()
def _bus() -> float:
    values = torch.full((_NBYTES // 8,), 1, dtype=torch.int64)
    return _NBYTES / _fastest(lambda: values.sum())


@torch.inference_mode()
def _product(precision: str) -> ProductSpeed:
    nbytes, products = _products(precision)
    speeds = []
    for rows in (1, PROMPT_ROWS):
        x_MK = torch.full((rows, _COLUMNS), 0.5, dtype=torch.bfloat16)

        def all_of(x_MK: torch.Tensor = x_MK) -> None:
            for product in products:
                product(x_MK)

        speeds.append(rows * nbytes * len(products) / _fastest(all_of))
    return ProductSpeed(token=speeds[0], prompt=speeds[1])


def _products(precision: str) -> tuple[int, list[Callable[[torch.Tensor], torch.Tensor]]]:
    """Bytes of a matrix, and products with as many matrices as do not fit into caches. Contents do not matter."""
    scheme, library = SCHEMES.get(precision), native.library()
    made: list[Callable[[torch.Tensor], torch.Tensor]] = []
    nbytes = 0
    enough = _DECODED_NBYTES if precision in (FP8.name, MXFP4.name, NVFP4.name) else _NBYTES
    while nbytes * len(made) < enough:
        if scheme is not None:
            codes, scales = (
                torch.full(shape, 1, dtype=native.PART_DTYPES[dtype])
                for dtype, shape in scheme.form.parts(_ROWS, _COLUMNS)
            )
            nbytes = codes.nbytes + scales.nbytes
            if library is not None and native.PackedMatrix.served(library, precision, _COLUMNS):
                made.append(native.PackedMatrix(library, precision, codes, scales))
            else:
                made.append(partial(quantised_linear, codes=codes, scales=scales, scheme=scheme))
        elif precision == FP8.name:
            values = torch.full((_ROWS, _COLUMNS), 1.0).to(torch.float8_e4m3fn)
            grid = torch.full((_ROWS // 128, _COLUMNS // 128), 1.0)
            nbytes = values.nbytes + grid.nbytes
            made.append(partial(_by_fp8, values, grid))
        elif precision == MXFP4.name:
            blocks = torch.full((_ROWS, _COLUMNS // 32, 16), 17, dtype=torch.uint8)
            powers = torch.full((_ROWS, _COLUMNS // 32), 127, dtype=torch.uint8)
            nbytes = blocks.nbytes + powers.nbytes
            made.append(partial(_by_mxfp4, blocks, powers))
        else:
            weight = torch.full((_ROWS, _COLUMNS), 0.5, dtype=torch.bfloat16)
            nbytes = weight.nbytes
            made.append(partial(stock_linear, weight=weight, bias=None))
    return nbytes, made


def _by_fp8(values: torch.Tensor, grid: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    return stock_linear(x_MK, dequantise_fp8(values, grid, x_MK.dtype), None)


def _by_mxfp4(blocks: torch.Tensor, powers: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    return x_MK @ dequantise_mxfp4(blocks, powers, x_MK.dtype)


@torch.inference_mode()
def _quantising() -> float:
    weights = torch.full((_QUANTISED_NBYTES // 2 // _COLUMNS, _COLUMNS), 0.5, dtype=torch.bfloat16)
    weights[:, ::3] = -0.25
    return _QUANTISED_NBYTES / _fastest(lambda: SCHEMES["int4"].quantise(weights))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds, after one that is not counted."""
    work()
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
