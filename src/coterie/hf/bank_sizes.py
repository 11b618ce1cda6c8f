"""Layers with numbers of experts of their own, which no configuration of transformers can say.

A configuration has one number of experts for all layers of a component. So a model is built with the largest, and the
layers that have fewer are cut on the meta device, before any weight is read. What depends on the number is found by
building the same model with another one: parameters and integers that differ, and experts that are modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.hf.banks import ExpertBank, find_banks
from coterie.hf.expert_counts import set_expert_counts
from coterie.hf.skeleton import build_skeleton
from coterie.spec import BankKey

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_NUMBERED = re.compile(r"(\D*)(\d+)")
_PLAIN = (int, float, str, tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A size that grows evenly with the number of experts: ``size`` at ``experts``, ``step`` more for each."""

    experts: int
    size: int
    step: int

    @classmethod
    def between(cls, name: str, first: tuple[int, int], second: tuple[int, int]) -> _Rule:
        """From two pairs of number of experts and size."""
        (experts, size), (other, other_size) = first, second
        step, rest = divmod(size - other_size, experts - other)
        if rest:
            raise _unknown(name)
        return cls(experts=experts, size=size, step=step)

    def at(self, experts: int) -> int:
        return self.size + self.step * (experts - self.experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """What of one module depends on the number of experts of the bank that it belongs to."""

    path: str
    before: int
    experts: int
    tensors: Mapping[str, tuple[int, _Rule]]
    numbers: Mapping[str, _Rule]
    children: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        module = model.get_submodule(self.path)
        for name, (dimension, rule) in self.tensors.items():
            _resize(module, name, dimension, rule.at(self.experts))
        for name, rule in self.numbers.items():
            setattr(module, name, rule.at(self.experts))
        for name in self.children:
            del module._modules[name]
        config = module.__dict__.get("config")
        if config is not None:
            module.config = set_expert_counts(config, None, self.before, self.experts)


@dataclass(frozen=True, slots=True)
class BankSizes:
    """How a model is cut so that its layers have the numbers of experts that its source says.

    Made by :meth:`of`; applied to skeletons of the same class and configuration.
    """

    cuts: tuple[_Cut, ...]

    @classmethod
    def of(cls, skeleton: PreTrainedModel, counts: Mapping[BankKey, int]) -> BankSizes:
        """Finds what is to be cut.

        Args:
            skeleton: The model as its configuration describes it, on the meta device.
            counts: Bank → its number of experts. Nothing is cut of components whose banks all have the same, or of
                which no bank has the number that the configuration says.

        Raises:
            UnsupportedError: If something depends on the number in a way that is not known.
        """
        cuts: list[_Cut] = []
        if not uneven(counts):
            return cls(())
        banks = find_banks(skeleton)
        for component in sorted({key.component for key in counts}):
            own = [bank for bank in banks if bank.key.component == component and bank.key in counts]
            wanted = {bank.key: counts[bank.key] for bank in own}
            stated = {bank.num_experts for bank in own}
            if not uneven(wanted) or stated != {max(wanted.values())} or min(wanted.values()) < 1:
                continue  # what does not fit the configuration is found where numbers are compared
            least, before = min(wanted.values()), max(wanted.values())
            config = set_expert_counts(skeleton.config, component, before, least)
            other = build_skeleton(type(skeleton), config, skeleton.dtype)
            cuts += _differences(skeleton, other, own, wanted, least)
        return cls(tuple(cuts))

    def apply(self, model: nn.Module) -> None:
        """Cuts a model on the meta device."""
        for cut in self.cuts:
            cut.apply(model)


def bank_sizes(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, counts: Mapping[BankKey, int]
) -> BankSizes:
    """:meth:`BankSizes.of` for a model that is still to be built; nothing is built where all numbers are equal.

    Args:
        cls: The class.
        config: Its configuration.
        dtype: That the model computes in.
        counts: Bank → its number of experts.

    Raises:
        UnsupportedError: As :meth:`BankSizes.of`, or if the model cannot be built.
    """
    if not uneven(counts):
        return BankSizes(())
    return BankSizes.of(build_skeleton(cls, config, dtype), counts)


def uneven(counts: Mapping[BankKey, int]) -> bool:
    """Whether layers of one component have different numbers of experts."""
    found: dict[str, int] = {}
    return any(found.setdefault(key.component, count) != count for key, count in counts.items())


def banks_around(name: str, banks: list[ExpertBank]) -> list[ExpertBank]:
    """The banks whose router a tensor or module belongs to: those in the smallest module around it that has any.

    Args:
        name: Of the tensor or module within the model.
        banks: The model's.
    """
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        found = [bank for bank in banks if parent in (bank.router_block, bank.router_block.rpartition(".")[0])]
        if found:
            return found
    return []


def _differences(
    model: PreTrainedModel,
    other: PreTrainedModel,
    banks: list[ExpertBank],
    wanted: Mapping[BankKey, int],
    least: int,
) -> Iterator[_Cut]:
    """The cuts of one component's layers, from a second model with ``least`` experts in all of them."""
    others = dict(other.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        around = banks_around(f"{path}.", banks)
        counts = {wanted.get(bank.key, bank.num_experts) for bank in around}
        if path not in others or not around or counts == {around[0].num_experts}:
            continue
        if len(counts) > 1:
            raise _unknown(path)
        (count,) = counts
        cut = _difference(path, module, others[path], (around[0].num_experts, least), count)
        if cut is not None:
            yield cut


def _difference(path: str, module: nn.Module, other: nn.Module, sizes: tuple[int, int], count: int) -> _Cut | None:
    before, least = sizes
    tensors: dict[str, tuple[int, _Rule]] = {}
    for name, tensor in _own_tensors(module).items():
        shape, small = tuple(tensor.shape), tuple(_own_tensors(other)[name].shape)
        different = [d for d, (a, b) in enumerate(zip(shape, small, strict=True)) if a != b]
        if not different:
            continue
        if len(different) > 1 or name in module._non_persistent_buffers_set:
            raise _unknown(f"{path}.{name}")
        (at,) = different
        tensors[name] = at, _Rule.between(f"{path}.{name}", (before, shape[at]), (least, small[at]))
    numbers = {
        name: _Rule.between(f"{path}.{name}", (before, value), (least, small))
        for name, value, small in _different_numbers(path, module, other)
    }
    gone = tuple(name for name in module._modules if name not in other._modules and _number(path, name) >= count)
    if not (tensors or numbers or gone):
        return None
    return _Cut(path=path, before=before, experts=count, tensors=tensors, numbers=numbers, children=gone)


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    held = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def _different_numbers(path: str, module: nn.Module, other: nn.Module) -> Iterator[tuple[str, int, int]]:
    for name, value in vars(module).items():
        small: Any = vars(other).get(name)
        if name.startswith("_") or not isinstance(value, _PLAIN) or value == small:
            continue
        if type(value) is not int or type(small) is not int:
            raise _unknown(f"{path}.{name}")
        yield name, value, small


def _number(path: str, name: str) -> int:
    """The number in the name of a child that only some numbers of experts have: an expert's."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        raise _unknown(f"{path}.{name}")
    return int(match[2])


def _resize(module: nn.Module, name: str, dimension: int, size: int) -> None:
    old = _own_tensors(module)[name]
    shape = list(old.shape)
    shape[dimension] = size
    new = torch.empty(shape, dtype=old.dtype, device="meta")
    if name in module._buffers:
        module._buffers[name] = new
        return
    module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)


def _unknown(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} depends on the number of experts in a way that is not known, so layers cannot have different numbers.",
        advice="Keep the same number in every layer.",
        tensor=name,
    )
