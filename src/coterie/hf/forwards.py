"""Whether two classes compute the same, by their source: what is shown for one then holds for the other."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn


def same_forward(cls: type[nn.Module], reference: type[nn.Module], *, helpers: tuple[str, ...] = ()) -> bool:
    """Whether two classes have the same forward, decorators and comments aside.

    Args:
        cls: A class.
        reference: Another one.
        helpers: Functions of the classes' modules that the forward calls and that must be the same, too.
    """
    one, other = inspect.unwrap(cls.forward), inspect.unwrap(reference.forward)
    if _body(one) != _body(other):
        return False
    pairs = [(one.__globals__.get(name), other.__globals__.get(name)) for name in helpers]
    return all(a is not None and b is not None and _body(a) == _body(b) for a, b in pairs)


@functools.cache
def _body(function: Callable[..., Any]) -> str:
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return repr(function)  # without source, only the same object is the same
    return _normalised(textwrap.dedent(source))


def _normalised(source: str) -> str:
    source = source.replace("torch.nn.functional.", "F.").replace("nn.functional.", "F.")
    (function,) = ast.parse(source).body
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return "\n".join(ast.dump(statement) for statement in body)
