"""``with coterie.load(...) as model:`` closes the model at the end."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from coterie.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def close_by_with(model: PreTrainedModel) -> None:
    """Gives a model's class what Python looks for there and nowhere else, by a class of its own below it.

    Args:
        model: An open model; it stays an instance of its class, under the same name.
    """
    model.__class__ = _with_end(type(model))  # type: ignore[arg-type, unused-ignore]


@functools.cache
def _with_end(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__enter__": _enter,
        "__exit__": _exit,
        "__copy__": _copy,
    }
    return type(base.__name__, (base,), members)


def _enter(self: Any) -> Any:
    """The model itself."""
    return self


def _exit(
    self: Any, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    """Frees the experts' memory."""
    self.coterie.close()


def _copy(self: Any) -> NoReturn:
    """Two models would share one cache, and the one that is closed first would end the other."""
    raise UnsupportedError(
        "copy() is not possible on a streamed model.",
        advice="Use the model itself, which several threads may do at once, or open it again with coterie.load().",
        operation="__copy__",
    )
