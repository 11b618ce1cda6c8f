"""What of a profile a picture is about."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.errors import UsageError
from coterie.profiles import BankTable, Profile
from coterie.spec import BankKey


def component_tables(profile: Profile, component: str | None) -> list[BankTable]:
    """The banks of one component.

    Raises:
        UsageError: For a component that is not there, or none where there are several.
    """
    components = sorted({key.component for key in profile.banks})
    if component is None and len(components) > 1:
        raise UsageError(
            f"The profile has several components: {', '.join(components)}.",
            advice="Say which one to draw.",
            components=components,
        )
    return list(profile.tables(component))


def layer_table(profile: Profile, layer: int, component: str | None, bank: str | None) -> BankTable:
    """The one bank of a layer.

    Raises:
        UsageError: If there is none, or several; lists what there is.
    """
    tables = component_tables(profile, component)
    found = [t for t in tables if t.shape.bank.layer == layer and bank in (None, t.shape.bank.bank)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(table.shape.bank.bank for table in found)
        raise UsageError(f"Layer {layer} has several banks of experts: {names}.", advice="Say which one to draw.")
    there = ", ".join(bank_labels([table.shape.bank for table in tables]))
    raise UsageError(
        f"The profile has no experts of layer {layer}{'' if bank is None else f', bank {bank!r}'}.",
        advice=f"It has layers {there}.",
        layer=layer,
    )


def bank_labels(banks: Sequence[BankKey]) -> list[str]:
    """Layer numbers, with the bank's name where it is not the usual one."""
    return [str(key.layer) if key.bank == "mlp" else f"{key.layer} {key.bank}" for key in banks]


def described(model: str, *names: str | None, tokens: int | None = None) -> str:
    """A model and what of it is shown, as the end of a title."""
    parts = [model, *(name for name in names if name is not None)]
    return ", ".join(parts if tokens is None else [*parts, f"{tokens:,} tokens"])
