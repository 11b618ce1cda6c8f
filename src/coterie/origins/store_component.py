"""What of a store is opened: the whole model, or one component of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import LoadError, UsageError
from coterie.hf.configs import load_config, resolve_model
from coterie.spec import BankKey, ExpertSource
from coterie.store import Store, StorePart


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreComponent:
    """The model of a store, or a component of it.

    Attributes:
        name: The component that it is of a larger model, or None.
        model_class: transformers' class of it.
        config: Its part of the configuration.
        prefix: What the names of its tensors begin with in the store: empty where it is all that the store holds.
        experts: Its experts.
        banks: Its banks → experts of each, with and without weights.
    """

    name: str | None
    model_class: type[Any]
    config: Any
    prefix: str
    experts: ExpertSource
    banks: Mapping[BankKey, int]


def store_component(store: Store, component: str | None) -> StoreComponent:
    """Finds a component of a store.

    Args:
        store: The store.
        component: ``thinker`` or ``talker`` of a whole model; None for all that the store holds.

    Raises:
        LoadError: If the configuration describes another model than the store holds.
        UsageError: If it has no such component.
        UnsupportedError: If transformers has no such class.
    """
    facts = store.manifest.model
    model_class, config = resolve_model(load_config(store.path), component or facts.component)
    if component in (None, facts.component) and model_class.__name__ != facts.class_name:
        raise LoadError(
            f"{store.path} holds a {facts.class_name}, its config.json describes a {model_class.__name__}.",
            advice="Extract the store again.",
            path=store.path,
            expected=facts.class_name,
            got=model_class.__name__,
        )
    banks = {key: bank.num_experts for key, bank in store.banks.items()}
    if model_class.__name__ == facts.class_name:
        return StoreComponent(
            name=component or facts.component,
            model_class=model_class,
            config=config,
            prefix="",
            experts=store,
            banks=banks,
        )
    if facts.component is not None:
        raise UsageError(
            f"{store.path} holds only the {facts.component}, not the {component}.",
            advice=f"Leave component out, or extract the {component} into a store.",
            component=component,
        )
    own = {key: count for key, count in banks.items() if key.component == component}
    return StoreComponent(
        name=component,
        model_class=model_class,
        config=config,
        prefix=f"{component}.",
        experts=StorePart(store, own),
        banks=own,
    )
