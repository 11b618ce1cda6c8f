"""Chooses the codes of an expert's matrices: here, or by workers of a cluster, who need no model for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from coterie.cluster.workers import WorkerFacts
from coterie.engine.bit_identity import worker_facts
from coterie.extraction.quantising import naming_matrix
from coterie.quant import lossy_scheme
from coterie.quant.calibrated import MatrixError, choose_codes
from coterie.quant.scheme import Parts
from coterie.spec import ExpertKey

Solution = tuple[Parts, MatrixError]
"""The tensors that a scheme's form describes, and what they are off by."""


class Problem(NamedTuple):
    """A matrix whose codes are to be chosen; N outputs, K inputs.

    Attributes:
        key: Its expert.
        parameter: Its name.
        scheme: Name of the scheme that it is to be in.
        weights: [N, K].
        hessian_KK: As of :func:`~coterie.quant.calibrated.choose_codes`.
    """

    key: ExpertKey
    parameter: str
    scheme: str
    weights: torch.Tensor
    hessian_KK: torch.Tensor


class Solver:
    """Chooses the codes of one expert at a time."""

    @torch.inference_mode()
    def run(self, shard: Sequence[Problem]) -> dict[str, Solution]:
        """The codes of matrices, by parameter.

        Raises:
            QuantisationError: If a weight or a Hessian is not finite; names expert and parameter.
        """
        found: dict[str, Solution] = {}
        for one in shard:
            scheme = lossy_scheme(one.scheme)
            assert scheme is not None, "what is native has no codes"
            with naming_matrix(one.key, one.parameter):
                chosen = choose_codes(scheme, one.weights, one.hessian_KK)
            found[one.parameter] = chosen.parts, chosen.error
        return found


@dataclass(frozen=True, slots=True)
class Solving:
    """The work of a solver elsewhere.

    Attributes:
        threads: It computes with: with another number, sums may have other bits.
    """

    threads: int

    @contextmanager
    def open(self) -> Iterator[tuple[Solver, WorkerFacts]]:
        """There is nothing to open but the threads."""
        torch.set_num_threads(self.threads)
        yield Solver(), worker_facts()
