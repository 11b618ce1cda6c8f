"""Pictures and sounds are decoded within the budget, or refused: cgroups as small as it, and nobody is killed."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cgroup import CgroupRun, run_in_cgroup, why_unavailable

MIB = 1 << 20
REASON = why_unavailable()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, coterie
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.errors import InputError
options, files = json.loads(sys.argv[1]), json.loads(sys.argv[2])
opened = OpenModel.of(coterie.load("bundled", **options))
told = []
for _ in range(2):
    try:
        inputs = build_inputs(opened.processors, "", **files).to(opened.model.dtype)
        told.append(opened.model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1])
    except InputError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def run(memory: int, files: dict[str, list[str]], **options: int) -> tuple[CgroupRun, list[int | str]]:
    options |= {"memory": memory * MIB}
    command = [sys.executable, "-c", PROGRAM, json.dumps(options), json.dumps(files)]
    found = run_in_cgroup(command, memory * MIB, env={"OMP_NUM_THREADS": "1"}, timeout_s=1200)
    assert not found.killed
    assert found.returncode == 0, found.stderr[-2000:]
    assert max(found.resident, found.high_water) <= memory * MIB
    return found, json.loads(found.stdout)


def one_colour(path: Path, width: int, height: int) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, line = zlib.compressobj(9), bytes(1 + 3 * width)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return str(path)


def test_a_picture_of_one_colour_and_many_pixels_is_refused(tmp_path: Path) -> None:
    _, told = run(750, {"images": [one_colour(tmp_path / "huge.png", 13_376, 13_376)]})
    assert all("huge.png has 13376 × 13376 pixels, which take" in str(one) for one in told)


def test_large_pictures_are_read_one_by_one(tmp_path: Path) -> None:
    paths = []
    for number in range(8):
        paths.append(str(tmp_path / f"{number}.{('png', 'jpg')[number % 2]}"))
        small = np.random.default_rng(number).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(np.kron(small, np.ones((10, 10, 1), np.uint8))).save(paths[-1])
    _, told = run(605, {"images": paths}, max_context=1024)
    assert all(isinstance(one, int) for one in told), told


def test_a_sound_of_many_bytes_is_read_block_by_block(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    rate, seconds = 192_000, 60
    wave = (np.sin(np.arange(rate * seconds) * (2 * np.pi * 440 / rate)) * 2**30).astype("<i4")
    data = np.stack([wave, wave], axis=1).tobytes()
    form = struct.pack("<HHIIHH", 1, 2, rate, 8 * rate, 8, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    _, told = run(605, {"audios": [str(path)]}, max_context=1024)
    assert all(isinstance(one, int) for one in told), told
