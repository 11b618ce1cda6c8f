"""Which checkpoint tensor goes where, decided by transformers' own conversion mapping.

Every name is claimed exactly once: as dense, as part of an expert, as ignored by transformers, or as outside the
component that was asked for. What is left over is unclaimed, and what the model needs but nobody gives is missing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from coterie.errors import TensorMissingError, UnsupportedError
from coterie.hf.banks import ExpertBank, find_banks
from coterie.hf.families.arrangement import Holding
from coterie.hf.leftovers import PartsOf
from coterie.hf.releases import moved
from coterie.spec import BankKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel

with moved(__name__):
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
    from transformers.core_model_loading import (
        ErnieFuseAndSplitTextVisionExperts,
        MergeModulelist,
        WeightConverter,
        WeightRenaming,
        WeightTransform,
        dot_natural_key,
        rename_source_key,
    )


_DEQUANTISING = frozenset({"Inkling2LoopDequantizeExperts"})
"""Operations by name, as older releases lack them: they pass on weights that come without scales."""


@dataclass(slots=True, kw_only=True)
class FieldSource:
    """Where one parameter of a bank comes from.

    Attributes:
        target: Full name of the stacked parameter in the model.
        converter: transformers' converter, or None where the tensor is used as it is.
        names: Source pattern → checkpoint names: E of them (one per expert, in order) or one (all experts fused).
        holding: How the model's parameters hold the field; as the checkpoint does, where nothing is converted.
        num_experts: E; needed where ``holding`` is ``rows``.
        parts: How many parameters the converter splits its tensors over, in equal shares; ``names`` is one share.
    """

    target: str
    converter: WeightConverter | None
    names: dict[str, list[str]]
    holding: Holding = "stacked"
    num_experts: int = 0
    parts: int = 1

    @property
    def per_expert(self) -> bool:
        """Whether the checkpoint has one tensor per expert (else one tensor for all)."""
        if self.holding == "separate":
            return True
        stacking = (MergeModulelist, ErnieFuseAndSplitTextVisionExperts)
        return self.converter is not None and any(isinstance(op, stacking) for op in self.converter.operations)

    def stacked_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor with all experts as [E, …], given the one that the checkpoint states."""
        if self.holding == "rows" and shape and shape[0] % self.num_experts == 0:
            return (self.num_experts, shape[0] // self.num_experts, *shape[1:])
        return shape

    def names_of(self, expert: int) -> list[str]:
        """The checkpoint tensors that hold this expert, in pattern order."""
        return [names[expert if self.per_expert else 0] for names in self.names.values()]


@dataclass(slots=True, kw_only=True)
class KeyMap:
    """The claim of every tensor of a checkpoint.

    Attributes:
        banks: The model's banks of experts.
        experts: Bank → parameter name → source.
        dense: Checkpoint name → name in the model, for everything that is not an expert.
        ignored: Checkpoint names that transformers ignores on purpose (multi-token-prediction heads and the like).
        left_out: Those of ``ignored`` that are of parts which nothing says that the model may do without; transformers
            leaves them out with a warning.
        outside: Checkpoint names of other components.
        unclaimed: Checkpoint names that belong to nothing.
        missing: Names in the model that no checkpoint tensor gives.
        rearranged: Those names of ``dense`` that are not the model's tensors as they lie: several make one, or a
            conversion changes them.
    """

    banks: list[ExpertBank]
    experts: dict[BankKey, dict[str, FieldSource]] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rearranged: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Group:
    converter: WeightConverter | None
    names: dict[str, list[str]]


def map_keys(model: PreTrainedModel, names: Iterable[str], *, component: str | None = None) -> KeyMap:
    """Claims every checkpoint name for the model.

    Args:
        model: A skeleton of the class that will be loaded.
        names: All tensor names of the checkpoint.
        component: The component that ``model`` is of a larger checkpoint, or None.

    Raises:
        TensorMissingError: If a bank lacks the tensors of some of its experts.
        UnsupportedError: If a conversion is of a kind that cannot be done one expert at a time.
    """
    keymap = KeyMap(banks=find_banks(model))
    inside = _split_component(list(names), component, keymap)
    groups, unexpected = _group_by_target(model, inside, _conversions(model, component))
    places = [(bank, place) for bank in keymap.banks for place in (bank, *map(bank.at, bank.tied))]
    stacked = {t: (bank, p) for bank, place in places for p, names in place.targets.items() for t in names}
    covered: set[str] = set()
    for target, group in groups.items():
        targets = _all_targets(target, group.converter)
        covered.update(targets)
        if not any(t in stacked for t in targets):
            keymap.dense.update({name: target for names_ in group.names.values() for name in names_})
            keymap.rearranged.update(_rearranged(group))
            continue
        for place, names_ in _shares(targets, group).items():
            bank, parameter = stacked[place]
            if bank.holding == "separate":
                continue
            source = FieldSource(
                target=place,
                converter=group.converter,
                names=names_,
                holding=bank.holding,
                num_experts=bank.num_experts,
                parts=len(targets),
            )
            keymap.ignored.extend(_take_unused(source, bank))
            _check_complete(source, bank)
            _check_once(keymap.experts.setdefault(bank.key, {}), parameter, source)
            keymap.experts[bank.key][parameter] = source
    _claim_separate(keymap, groups)
    _settle(model, keymap, covered, unexpected)
    return keymap


def map_dense(model: PreTrainedModel, names: Iterable[str], *, component: str | None = None) -> KeyMap:
    """The claims of tensors of which each is known to be dense and to belong to the model, as in a store.

    Args:
        model: The skeleton.
        names: Their names.
        component: The component that ``model`` is of a larger checkpoint, or None.

    Returns:
        With what the model lacks under ``missing``, experts apart.
    """
    keymap = KeyMap(banks=find_banks(model))
    groups, unexpected = _group_by_target(model, list(names), _conversions(model, component))
    places = [place for bank in keymap.banks for place in (bank, *map(bank.at, bank.tied))]
    covered = {name for place in places for found in place.targets.values() for name in found}
    for target, group in groups.items():
        covered.update(_all_targets(target, group.converter))
        keymap.dense.update({name: target for names_ in group.names.values() for name in names_})
        keymap.rearranged.update(_rearranged(group))
    keymap.unclaimed = sorted(name for found in unexpected.values() for name in found)
    info = SimpleNamespace(missing_keys=_missing(model, covered), unexpected_keys=set())
    model._adjust_missing_and_unexpected_keys(info)
    keymap.missing = sorted(info.missing_keys)
    return keymap


def plain_targets(model: PreTrainedModel, names: Iterable[str], *, component: str | None = None) -> dict[str, str]:
    """Checkpoint name → name in the model, of the tensors that the model takes as they lie; others are left out.

    Args:
        model: The skeleton.
        names: Names of dense tensors.
        component: The component that ``model`` is of a larger checkpoint, or None.
    """
    keymap = map_dense(model, names, component=component)
    return {name: target for name, target in keymap.dense.items() if name not in keymap.rearranged}


def _rearranged(group: _Group) -> list[str]:
    names = [name for names_ in group.names.values() for name in names_]
    return names if group.converter is not None or len(names) > 1 else []


def _shares(targets: list[str], group: _Group) -> dict[str, dict[str, list[str]]]:
    """Which tensors of a group go into which of its parameters: all into one, or equal shares of each pattern's.

    Raises:
        UnsupportedError: If a conversion splits the tensors themselves.
    """
    if len(targets) == 1:
        return {targets[0]: group.names}
    operations = [] if group.converter is None else group.converter.operations
    if [type(operation) for operation in operations] != [ErnieFuseAndSplitTextVisionExperts]:
        raise UnsupportedError(
            f"The tensors of {targets[0]} are split over several parameters, which is not supported.",
            advice="Use transformers itself for it.",
            tensor=targets[0],
        )
    shares: dict[str, dict[str, list[str]]] = {}
    for number, target in enumerate(targets):
        shares[target] = {}
        for pattern, names in group.names.items():
            size = ceil(len(names) / len(targets))  # as the conversion does
            shares[target][pattern] = names[number * size : (number + 1) * size]
    return shares


def _check_once(known: dict[str, FieldSource], parameter: str, source: FieldSource) -> None:
    """Refuses a checkpoint that has the experts of tied modules more than once: transformers then unties them."""
    if parameter in known:
        raise UnsupportedError(
            f"The checkpoint has both {known[parameter].target} and {source.target}, which the model ties.",
            advice="Save the checkpoint with transformers' save_pretrained, which leaves one of them out.",
            tensor=source.target,
        )


def _take_unused(source: FieldSource, bank: ExpertBank) -> list[str]:
    """Takes out the tensors of experts that compute without weights: they are saved, and nothing reads them."""
    unused: list[str] = []
    if bank.identities and source.per_expert:
        for pattern, names in source.names.items():
            if len(names) == bank.num_experts + bank.identities:
                source.names[pattern], rest = names[: bank.num_experts], names[bank.num_experts :]
                unused.extend(rest)
    return unused


def _claim_separate(keymap: KeyMap, groups: dict[str, _Group]) -> None:
    """Claims the fields of experts that are modules of their own: one parameter, and one tensor, per expert."""
    for bank in keymap.banks:
        if bank.holding != "separate":
            continue
        for parameter, targets in bank.targets.items():
            names = []
            for target in targets:
                group = groups.get(target)
                given = [name for found in group.names.values() for name in found] if group is not None else []
                if len(given) != 1:
                    raise TensorMissingError(
                        f"The checkpoint lacks {target!r}."
                        if not given
                        else f"{target!r} is put together from {len(given)} tensors, which is not supported.",
                        advice="Download the checkpoint again.",
                        tensor=target,
                    )
                names += given
            pattern = targets[0].replace(".expert_0.", ".expert_*.")
            source = FieldSource(target=pattern, converter=None, names={pattern: names}, holding="separate")
            keymap.experts.setdefault(bank.key, {})[parameter] = source


def _split_component(names: list[str], component: str | None, keymap: KeyMap) -> list[str]:
    prefix = f"{component}."
    if component is None or not any(n.startswith(prefix) for n in names):
        return names
    keymap.outside = sorted(name for name in names if not name.startswith(prefix))
    return [name for name in names if name.startswith(prefix)]


def _conversions(model: PreTrainedModel, component: str | None) -> list[WeightTransform]:
    """Transformers' conversions for the model, or for the whole that it is a component of.

    A talker has no model type to look conversions up by; within the whole it is covered by those of the root, whose
    model type is the name of the package that both classes are in.
    """
    transforms: list[WeightTransform] = get_model_conversion_mapping(model)
    if component is not None and not any(isinstance(t, WeightConverter) for t in transforms):
        family = type(model).__module__.split(".")[-2]
        transforms = [*(get_checkpoint_conversion_mapping(family) or []), *transforms]
    return transforms


def _group_by_target(
    model: PreTrainedModel, names: list[str], transforms: list[WeightTransform]
) -> tuple[dict[str, _Group], dict[str, list[str]]]:
    """Renames as ``convert_and_load_state_dict_in_model`` does; returns groups by target, and unexpected names."""
    state: dict[str, Any] = model.state_dict()
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = model.base_model_prefix
    groups: dict[str, _Group] = {}
    order: dict[str, list[tuple[int, str]]] = defaultdict(list)
    unexpected: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed not in state:
            unexpected[renamed].append(name)
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        group = groups.setdefault(renamed, _Group(converter, {}))
        group.names.setdefault(pattern or name, []).append(name)
        if pattern is not None and "*" in pattern:
            plain, _ = rename_source_key(name, renamings, [], prefix, state)
            order[f"{renamed}\n{pattern}"].append((_expert_number(plain, pattern), name))
    for place, numbered in order.items():
        renamed, pattern = place.split("\n")
        groups[renamed].names[pattern] = _in_expert_order(numbered, renamed)
    for group in groups.values():
        if group.converter is not None:
            group.names = {p: group.names[p] for p in group.converter.source_patterns if p in group.names}
    return groups, unexpected


def _expert_number(name: str, pattern: str) -> int:
    match = re.search(pattern.replace("*.", r"(?P<expert>\d+)\."), name)
    return int(match["expert"]) if match else -1


def _in_expert_order(numbered: list[tuple[int, str]], target: str) -> list[str]:
    numbers = [number for number, _ in numbered]
    if -1 in numbers:
        return [name for _, name in numbered]
    absent = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if absent:
        raise TensorMissingError(
            f"The checkpoint lacks expert {absent[0]} of {target}.",
            advice="Download the checkpoint again.",
            tensor=target,
            experts=absent,
        )
    return [name for _, name in sorted(numbered)]


def _check_complete(source: FieldSource, bank: ExpertBank) -> None:
    expected = bank.num_experts if source.per_expert else 1
    if source.converter is not None:
        optional = _only_if_quantised(source.converter)
        stored = [name for pattern in optional for name in source.names.get(pattern, ())]
        if stored:
            raise UnsupportedError(
                f"The experts of {source.target} are stored quantised, in a form of their own ({stored[0]}), which is "
                "not supported.",
                advice="Load it with transformers, save it in bfloat16 with save_pretrained, and use that.",
                tensor=stored[0],
            )
        lacking = [p for p in source.converter.source_patterns if p not in source.names and p not in optional]
        if lacking:
            raise TensorMissingError(
                f"The checkpoint lacks {lacking[0]!r} of {source.target}.",
                advice="Download the checkpoint again.",
                tensor=source.target,
                pattern=lacking[0],
            )
    for pattern, names in source.names.items():
        if len(names) != expected:
            raise TensorMissingError(
                f"{source.target} needs {expected} tensors {pattern!r}, the checkpoint has {len(names)}.",
                advice="Download the checkpoint again, or correct the number of experts in config.json.",
                tensor=source.target,
                expected=expected,
                got=len(names),
            )


def _only_if_quantised(converter: WeightConverter) -> list[str]:
    """Patterns of tensors that only a quantised checkpoint has, where a conversion takes others, too."""
    dequantises = any(type(operation).__name__ in _DEQUANTISING for operation in converter.operations)
    return list(converter.source_patterns[1:]) if dequantises else []


def _all_targets(target: str, converter: WeightConverter | None) -> list[str]:
    if converter is None or len(converter.target_patterns) == 1:
        return [target]
    first = converter.target_patterns[0]
    return [target.replace(first, other) for other in converter.target_patterns]


def _missing(model: PreTrainedModel, covered: set[str]) -> set[str]:
    """The model's tensors that nothing gives, directly or by being tied to another."""
    tied = getattr(model, "all_tied_weights_keys", {}) or {}
    missing = set(model.state_dict()) - covered
    missing -= {name for name, other in tied.items() if other in covered or name in covered}
    return missing - {other for name, other in tied.items() if name in covered}


def _settle(model: PreTrainedModel, keymap: KeyMap, covered: set[str], unexpected: dict[str, list[str]]) -> None:
    """Sorts the rest with transformers' own rules of what may be missing or unexpected."""
    info = SimpleNamespace(missing_keys=_missing(model, covered), unexpected_keys=set(unexpected))
    model._adjust_missing_and_unexpected_keys(info)
    keymap.missing = sorted(info.missing_keys)
    for renamed, names in unexpected.items():
        if renamed not in info.unexpected_keys:
            keymap.ignored.extend(names)
    parts = PartsOf(model)
    for renamed in sorted(info.unexpected_keys):
        names = unexpected[renamed]
        kind = parts.kind_of(renamed)
        (keymap.unclaimed if kind == "unknown" else keymap.ignored).extend(names)
        if kind == "left out":
            keymap.left_out.extend(names)
    for found in (keymap.ignored, keymap.unclaimed, keymap.left_out):
        found.sort()
