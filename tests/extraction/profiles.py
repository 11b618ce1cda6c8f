"""Profiles that say what a test wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coterie.checkpoint import Checkpoint
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts


def recorded(path: Path, source: Checkpoint, groups: dict[tuple[str, str], list[tuple[int, float, int]]]) -> Path:
    """A profile: (modality, domain) → (expert, gate × output size, tokens that choose it), in every layer alike."""
    banks = tuple(BankShape(bank=b, experts=source.banks[b].bank.num_experts, top_k=2) for b in sorted(source.banks))
    run = RunFacts(identity=source.identity, model="m", model_class="M", tool_version="0", banks=banks)
    with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
        for (modality, domain), experts in groups.items():
            group = recording.group(modality, domain, "prompt")
            for shape in banks:
                if (shape.bank.component == "talker") != (modality == "speech"):
                    continue
                for expert, size, tokens in experts:
                    ids = np.full((tokens, 1), expert, np.uint16)
                    values = np.full(ids.shape, size, np.float32)
                    recording.add(shape.bank, ids, np.ones(ids.shape, np.float32), values, group)
    return path
