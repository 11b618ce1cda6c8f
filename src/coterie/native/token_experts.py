"""The experts of a few rows in one call, where all that they chose are in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain

import torch

from coterie.errors import UsageError
from coterie.native.addresses import Addresses
from coterie.native.experts import ACTIVATIONS, ExpertsKernel
from coterie.native.token_state import TokenState

Places = tuple[int, int, int, int, int, int]
"""For gate_up and for down: the scheme's number in ``SCHEME_CODES``, and the bytes from a record's start to codes
and scales."""

_long, _pointer = ctypes.c_int64, ctypes.c_void_p


class TokenExperts:
    """The experts of a bank for rows whose layer :class:`NativeLayer` computed.

    Each row has the bits that :class:`ExpertsKernel` gives a token by itself. An expert that several rows chose is read
    once. Can be used by several threads at once.

    Args:
        kernel: What would compute them for any number of tokens.
        addresses: Where they are.
        places: Where the fields are in the record of each expert.

    Raises:
        UsageError: If there are more or fewer addresses or places than experts.
    """

    def __init__(self, kernel: ExpertsKernel, addresses: Addresses, places: Sequence[Places]) -> None:
        for name, count in (("addresses", addresses.count), ("places", len(places))):
            if count != kernel.num_experts:
                raise UsageError(f"There are {count} {name} for {kernel.num_experts} experts.", got=count)
        library = kernel.library
        functions = library.functions
        if functions.coterie_token_bank_bytes() != ctypes.sizeof(_Bank):
            raise AssertionError("token_experts.h and its mirror differ")
        # Held, because C is given their addresses.
        self._addresses = addresses
        self._places = (_long * (6 * len(places)))(*chain.from_iterable(places))
        self._bank = _Bank(
            level=library.level, activation=ACTIVATIONS.index(kernel.activation),
            width=kernel.width, inner=kernel.inner, experts=kernel.num_experts, addresses=addresses.address,
            records=ctypes.addressof(self._places),
        )  # fmt: skip
        self._address = ctypes.addressof(self._bank)
        self._row_nbytes = 4 * kernel.width + 2 * kernel.inner
        self._there, self._compute = functions.coterie_token_experts_there, functions.coterie_token_experts

    def there(self, state: TokenState) -> bool:
        """Whether all that any row chose are in memory, at this moment."""
        return bool(self._there(self._address, state.address, state.results.ids.shape[1]))

    def compute(self, state: TokenState, *, norms: bool = False) -> torch.Tensor | None:
        """The residual with what the experts add, bfloat16 [T, 1, D].

        None if one is not there, or a row chose one twice.

        Args:
            state: Through the layer, with its results.
            norms: Whether the Euclidean norm of what each choice adds is wanted, in the results' ``norms``.
        """
        results = state.results
        choices = results.ids.shape[1]
        state.make_contributions(state.rows * choices * self._row_nbytes)
        return results.out if self._compute(self._address, state.address, choices, norms) else None


class _Bank(ctypes.Structure):
    """``token_bank`` of ``token_experts.h``."""

    _fields_ = (
        *((name, _long) for name in ("level", "activation")),
        *((name, _long) for name in ("width", "inner", "experts")),
        ("addresses", _pointer),
        ("records", _pointer),
    )
