"""The matrices by which routers score experts, read one at a time; no model is built and nothing else is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coterie.errors import CheckpointFileError, UnsupportedError, UsageError
from coterie.spec import BankKey

if TYPE_CHECKING:
    from coterie.origins import Origin

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterMatrix:
    """The router of one bank of experts.

    Attributes:
        bank: The bank.
        tensor: Name of the tensor in the checkpoint or store.
        rows: float64 [E, D]; an expert's score is the product of its row with the hidden state, before biases and what
            the router makes of scores.
    """

    bank: BankKey
    tensor: str
    rows: Floats


class Routers:
    """The routers of a checkpoint or store.

    Attributes:
        name: Directory or Hub id.
        model_class: transformers class.
        banks: Banks whose router is one matrix → name of its tensor, in order.
        unsupported: Banks whose router is not, and why, as the end of a sentence.
    """

    def __init__(self, name: str, origin: Origin, component: str | None = None) -> None:
        """Made by :meth:`open`."""
        self.name = name
        self.model_class = origin.model.class_name
        self.banks: dict[BankKey, str] = {}
        self.unsupported: dict[BankKey, str] = {}
        self._origin = origin
        self._stored: dict[BankKey, list[str]] = {}
        self._shapes: dict[BankKey, tuple[int, ...]] = {}
        components = {key.component for key in origin.model.banks}
        if component is not None and component not in components:
            raise UsageError.unknown("component", component, components)
        for key in sorted(origin.model.banks):
            if component in (None, key.component):
                try:
                    self._stored[key], self._shapes[key] = _router_tensors(origin, key)
                    self.banks[key] = self._stored[key][0]
                except UnsupportedError as error:
                    self.unsupported[key] = str(error.facts.get("reason", error.message))

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        component: str | None = None,
        revision: str | None = None,
        offline: bool = False,
    ) -> Routers:
        """Opens a checkpoint or store and finds its routers. Reads headers only.

        Args:
            model: A store, a checkpoint directory, a Hub id, or ``bundled``.
            component: Only this part of the model.
            revision: Branch, tag or commit of a Hub repository.
            offline: Use only what is on this machine.

        Raises:
            CheckpointError, StoreError: If it cannot be used.
            UsageError: For a component that is not there, or a revision of something that is not on the Hub.
        """
        # Here, because pictures of a profile need no torch.
        from coterie.hf.configs import COMPONENTS
        from coterie.origins import CheckpointOrigin, StoreOrigin
        from coterie.origins.store_or_checkpoint import find_model
        from coterie.origins.store_place import StorePlace

        found = find_model(model, revision=revision, offline=offline)
        if isinstance(found, StorePlace):
            return cls(str(model), StoreOrigin.at(found, experts=False), component)
        # A part that can be opened by itself has a fingerprint of its own, by which profiles are keyed.
        part = component if component in COMPONENTS else None
        origin = CheckpointOrigin.open(found, component=part)
        return cls(str(model), origin, component)

    @property
    def identity(self) -> str:
        """Fingerprint of the model; reads all its routers, of a component that cannot be opened by itself too."""
        return self._origin.identity

    def read(self, bank: BankKey) -> RouterMatrix:
        """Reads one router, dequantised where it is quantised; downloads the shard that holds it.

        Raises:
            KeyError: If the bank has no router that is one matrix.
            CheckpointFileError: If the file cannot be read, or its shape is not the model's.
            UnsupportedError: If it holds what is not a number.
        """
        from coterie.checkpoint import unread_tensors

        name, *scales = self._stored[bank]
        origin = self._origin
        origin.download([name, *scales])
        infos = {known: origin.tensors[known] for known in (name, *scales)}
        tensor = unread_tensors(infos, origin.quantisation, origin.model.dtype)[name][...]
        shape = self._shapes[bank]
        if tuple(tensor.shape) == shape[::-1] != shape:
            tensor = tensor.T  # transformers transposes it on loading
        if tuple(tensor.shape) != shape:
            raise CheckpointFileError(
                f"The router of {bank}, {name!r}, has the shape {tuple(tensor.shape)}; the model needs {shape}.",
                advice="config.json and the weights do not belong together.",
                tensor=name,
                expected=shape,
                got=tuple(tensor.shape),
            )
        # Rows beyond these belong to choices without an expert of this bank.
        rows = tensor[: origin.model.banks[bank].bank.num_experts].double().numpy()
        if not np.isfinite(rows).all():
            raise UnsupportedError(
                f"The router of {bank}, {name!r}, holds values that are not finite.",
                advice="Verify the model: coterie verify.",
                tensor=name,
            )
        return RouterMatrix(bank=bank, tensor=name, rows=rows)


def _router_tensors(origin: Origin, key: BankKey) -> tuple[list[str], tuple[int, ...]]:
    """Names of the tensor that is a bank's router and, if it is quantised, of its scales; its shape in the model.

    Raises:
        UnsupportedError: If the router is not one matrix with a row for each expert; fact ``reason``.
    """
    from coterie.hf.quantised.names import FP8_SCALE
    from coterie.routing import find_router

    bank = origin.model.banks[key].bank
    slot = find_router(origin.model.skeleton.get_submodule(bank.router_block))
    # What has a dimension of 1 is a bias.
    matrices = [
        (name, parameter)
        for name, parameter in slot.module.named_parameters()
        if min(parameter.shape, default=0) > 1 and parameter.ndim > 1
    ]
    kind = type(slot.module).__name__
    if len(matrices) != 1:
        listed = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in matrices) or "none"
        raise _not_one_matrix(f"is a {kind} of {len(matrices)} matrices, not of one ({listed})")
    name, parameter = matrices[0]
    if parameter.ndim != 2 or parameter.shape[0] < bank.num_experts:
        raise _not_one_matrix(
            f"is a {kind} whose {name} has the shape {tuple(parameter.shape)}, not a row for each of "
            f"{bank.num_experts} experts"
        )
    target = f"{bank.router_block}.{slot.attribute}.{name}"
    places = origin.model.keymap.dense
    names = [tensor for tensor, place in places.items() if place == target]
    if len(names) != 1:
        raise _not_one_matrix(f"is a {kind} that is put together of {len(names)} tensors of the checkpoint")
    scales = [tensor for tensor, place in places.items() if place == f"{target}{FP8_SCALE}"]
    return names + scales, tuple(parameter.shape)


def _not_one_matrix(reason: str) -> UnsupportedError:
    return UnsupportedError(f"A router that {reason}.", reason=reason)
