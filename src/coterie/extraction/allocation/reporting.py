"""What an allocation is, beside schemes that are the same for all experts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from coterie.extraction.allocation.allocation import Choice, ComponentChoices, MatrixLevels
from coterie.extraction.allocation.choosing import ABSENCE, Level
from coterie.extraction.allocation.levels import Measured
from coterie.extraction.quantising import SchemedExperts, matrix_names, stored_matrix
from coterie.origins import Origin
from coterie.quant import Scheme
from coterie.spec import BankKey, ExpertKey
from coterie.spec.encodings import USUAL_SCHEMES, record_scheme

if TYPE_CHECKING:
    from coterie.profiles import ErrorWeights


def matrix_levels(
    keys: Sequence[ExpertKey],
    measured: Mapping[ExpertKey, Measured],
    levels: Mapping[ExpertKey, Sequence[Level]],
) -> tuple[MatrixLevels, ...]:
    """How often each level was given, by bank and matrix.

    Args:
        keys: All experts that were asked about, in order of bank.
        measured: What each matrix could have had.
        levels: Of each expert that stays, the level of each matrix.
    """
    found = []
    for bank in dict.fromkeys(key.bank_key for key in keys):
        own = [key for key in keys if key.bank_key == bank]
        for number, matrix in enumerate(measured[own[0]]):
            counts = Counter(levels[key][number].scheme for key in own if key in levels)
            found.append(
                MatrixLevels(
                    component=bank.component,
                    layer=bank.layer,
                    bank=bank.bank,
                    matrix=matrix,
                    levels=dict(sorted(counts.items())),
                    left_out=len(own) - sum(counts.values()),
                )
            )
    return tuple(found)


def component_choices(
    origin: Origin,
    component: str,
    measured: Mapping[ExpertKey, Measured],
    levels: Mapping[ExpertKey, Sequence[Level]],
    matter: ErrorWeights,
) -> ComponentChoices:
    """The allocation of a component beside the uniform schemes next to it in size.

    Args:
        origin: The model.
        component: Its name.
        measured: Of every expert, what each matrix could have had.
        levels: Of each expert that stays, the level of each matrix.
        matter: How much errors matter, and how often experts are asked for.
    """
    own = {key: found for key, found in measured.items() if key.component == component}
    weigh = _Scale(origin, own, matter)
    mixed = weigh.choice("allocation", {key: [level.scheme for level in levels[key]] for key in own if key in levels})
    uniform = [weigh.choice(name, {key: _all_in(name, found) for key, found in own.items()}) for name in USUAL_SCHEMES]
    return ComponentChoices(
        component=component,
        weights=weigh.weights,
        allocation=mixed,
        uniform=next_to(mixed.bits, uniform),
        asked_ratio=mixed.asked_nbytes / (weigh.asked * mixed.nbytes / len(own)) if mixed.nbytes else 0.0,
    )


def next_to(bits: float, uniform: Iterable[Choice]) -> tuple[Choice, ...]:
    """The schemes next to a size in bits per weight, the smaller first; one alone where all are larger, or none is."""
    ordered = sorted(uniform, key=lambda choice: choice.bits)
    below = [choice for choice in ordered if choice.bits <= bits]
    return (*below[-1:], *ordered[len(below) :][:1])


def _all_in(scheme: str, found: Measured) -> list[str]:
    """The scheme of each matrix of an expert, if all were in this one, but for those that are smaller already."""
    return [
        next((one.scheme for one in levels if one.scheme == scheme), levels[-1].scheme) for levels in found.values()
    ]


class _Scale:
    """Weighs ways of storing the experts of a component."""

    def __init__(self, origin: Origin, measured: Mapping[ExpertKey, Measured], matter: ErrorWeights) -> None:
        self._origin = origin
        self._levels = {
            key: [{level.scheme: level for level in levels} for levels in found.values()]
            for key, found in measured.items()
        }
        self._matter = {key: float(matter.weights[key.bank_key][key.expert]) for key in measured}
        self._rates = {key: float(matter.rates[key.bank_key][key.expert]) for key in measured}
        banks = Counter(key.bank_key for key in measured)
        self.weights = sum(count * matrix_weights(origin, bank) for bank, count in banks.items())
        self.asked = sum(self._rates.values())
        """Experts that a token asks for."""

    def choice(self, name: str, schemes: Mapping[ExpertKey, Sequence[str]]) -> Choice:
        """One way, in which experts without schemes are left out."""
        records = {key: record_scheme(of) for key, of in schemes.items()}
        sizes = SchemedExperts(self._origin, records.__getitem__)
        nbytes = {key: sizes.layout(key).nbytes for key in records}
        bits, errors = 0, 0.0
        for key, matrices in self._levels.items():
            if key not in schemes:
                errors += ABSENCE * self._matter[key]
                continue
            found = [matrix[scheme] for matrix, scheme in zip(matrices, schemes[key], strict=True)]
            bits += 8 * sum(level.nbytes for level in found)
            errors += self._matter[key] * sum(level.error for level in found)
        matter = sum(self._matter.values())
        return Choice(
            name=name,
            bits=bits / self.weights,
            nbytes=sum(nbytes.values()),
            error=errors / matter if matter > 0 else 0.0,
            asked_nbytes=round(self._asked_nbytes(nbytes)),
        )

    def _asked_nbytes(self, nbytes: Mapping[ExpertKey, int]) -> float:
        """Bytes that a token asks for. In place of experts that are left out it asks for others of their layer."""
        total: defaultdict[BankKey, float] = defaultdict(float)
        there: defaultdict[BankKey, float] = defaultdict(float)
        asked: defaultdict[BankKey, float] = defaultdict(float)
        for key, rate in self._rates.items():
            total[key.bank_key] += rate
            if key in nbytes:
                there[key.bank_key] += rate
                asked[key.bank_key] += rate * nbytes[key]
        return sum(asked[bank] * total[bank] / there[bank] for bank in there if there[bank] > 0)


def matrix_weights(origin: Origin, bank: BankKey) -> int:
    """Weights of the matrices of one expert."""
    own = origin.model.banks[bank].bank
    return sum(math.prod(own.parameters[name]) for name in matrix_names(own))


def matrix_nbytes(origin: Origin, bank: BankKey, scheme: Scheme) -> int:
    """Bytes of the matrices of one expert in a scheme, scales included."""
    own = origin.model.banks[bank].bank
    shapes = (stored_matrix(own, name, scheme).rows_and_columns for name in matrix_names(own))
    return sum(scheme.form.nbytes(*shape) for shape in shapes)
