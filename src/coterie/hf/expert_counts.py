"""The numbers of experts in a configuration, and the same configuration with others."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import UnsupportedError
from coterie.hf.configs import COMPONENTS, load_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

COUNT_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts of a layer."""

_GROUPS = ("n_group", "num_expert_group")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterGroups:
    """The groups of consecutive experts of which a router first chooses some.

    Attributes:
        count: How many there are; 1 for a router that has none.
        chosen: How many a token chooses.
        least: Experts that a group has at least.
    """

    count: int = 1
    chosen: int = 1
    least: int = 1


def router_groups(config: PreTrainedConfig, component: str) -> RouterGroups:
    """The groups of the routers of a component.

    Args:
        config: The whole configuration.
        component: Name of the component.
    """
    for path, part in _parts(config):
        if _component(path) not in (None, component):
            continue
        count = next((n for name in _GROUPS if type(n := getattr(part, name, None)) is int), 1)
        chosen = getattr(part, "topk_group", None)
        if count > 1:
            # A group's score is the sum of its two best experts', but where the method says otherwise.
            least = 2 if getattr(part, "topk_method", "noaux_tc") == "noaux_tc" else 1
            return RouterGroups(count=count, chosen=chosen if type(chosen) is int else count, least=least)
    return RouterGroups()


def with_expert_counts(
    raw: Mapping[str, Any], config: PreTrainedConfig, counts: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Any], PreTrainedConfig]:
    """A configuration with other numbers of experts, and nothing else changed.

    Args:
        raw: The content of ``config.json``.
        config: What transformers made of it.
        counts: Component → its number of experts so far, and the new one.

    Returns:
        The new content, and what transformers makes of it.

    Raises:
        UnsupportedError: If the configuration does not say the number under a name that is known.
    """
    changed = copy.deepcopy(dict(raw))
    for component, (old, new) in counts.items():
        if old == new:
            continue
        places = [
            (path, part)
            for path, part in _parts(config)
            if _component(path) in (None, component) and _states(part, old)
        ]
        if not places:
            raise UnsupportedError(
                f"The configuration of {type(config).__name__} does not say in a known way that the {component} has "
                f"{old} experts in a layer.",
                advice=f"It is looked for as {', '.join(COUNT_NAMES)}.",
                component=component,
                expected=old,
            )
        for path, part in places:
            _set(changed, path, part, old, new)
    with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(changed))
        return changed, load_config(Path(folder))


def set_expert_counts(config: PreTrainedConfig, component: str | None, old: int, new: int) -> PreTrainedConfig:
    """A copy of a configuration, or of a part of one, whose layers have another number of experts.

    Args:
        config: It is not changed.
        component: Whose layers; None for those of no particular component.
        old: The number so far; what states another number stays as it is.
        new: The new one.
    """
    copied = copy.deepcopy(config)
    for path, part in _parts(copied):
        if _component(path) not in (None, component):
            continue
        for name in COUNT_NAMES:
            value = getattr(part, name, None)
            if _is(value, old):
                setattr(part, name, [new] * len(value) if isinstance(value, (list, tuple)) else new)
    return copied


def _parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A configuration and all within it, each with the keys that lead to it."""
    yield path, config
    for name in getattr(config, "sub_configs", None) or {}:
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part, (*path, name))


def _component(path: tuple[str, ...]) -> str | None:
    """The component that a part of a whole configuration is of; None if it has no others."""
    first = path[0].removesuffix("_config") if path else None
    return first if first in COMPONENTS else None


def _states(part: Any, count: int) -> bool:
    return any(_is(getattr(part, name, None), count) for name in COUNT_NAMES)


def _is(value: object, count: int) -> bool:
    if isinstance(value, (list, tuple)):  # one number for each of several routers
        return bool(value) and all(_is(one, count) for one in value)
    return type(value) is int and value == count


def _set(raw: dict[str, Any], path: tuple[str, ...], part: Any, old: int, new: int) -> None:
    for key in path:
        raw = raw.setdefault(key, {})
    names = [name for name in COUNT_NAMES if _is(raw.get(name), old)]
    if not names:
        stated = next(name for name in COUNT_NAMES if _is(getattr(part, name, None), old))
        names = [(getattr(part, "attribute_map", None) or {}).get(stated, stated)]
    for name in names:
        value = raw.get(name, getattr(part, name, None))
        raw[name] = [new] * len(value) if isinstance(value, (list, tuple)) else new
