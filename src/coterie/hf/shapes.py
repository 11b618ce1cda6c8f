"""Whether a model is as large as its weights: shapes compared before anything of the model's size is allocated.

A configuration is a file of a stranger, and each number in it a size that transformers would allocate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import CheckpointFileError, CoterieError, LoadError
from coterie.hf.keymap import KeyMap, map_dense

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = tuple[int, ...]

_ALWAYS = 2**30
"""Bytes that a model may have beside its weights whatever these take: tables of positions, masks."""


def check_shapes(
    model: PreTrainedModel,
    keymap: KeyMap,
    shapes: Mapping[str, Shape],
    path: Path,
    error: type[CoterieError] = CheckpointFileError,
) -> None:
    """Compares what the model is to hold outside experts with what its tensors are.

    Args:
        model: The skeleton.
        keymap: The claims of its tensors.
        shapes: Shapes of the dense tensors by the names that they would have if nothing were quantised.
        path: ``config.json``, for messages.
        error: What to raise.

    Raises:
        CoterieError: Of that class: if a tensor has another shape than the model's, or the model needs far more memory
            that no tensor is for than all its tensors take.
    """
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    together: dict[str, int] = defaultdict(int)
    for name, shape in shapes.items():
        target = keymap.dense.get(name, "")
        if target not in state:
            continue
        if name in keymap.rearranged:
            together[target] += prod(shape)
        # One number may be stored as a vector of one, and the other way round.
        elif shape != state[target] and not prod(shape) == prod(state[target]) == 1:
            raise _misfit(error, name, shape, state[target], path)
    for target, elements in together.items():
        if prod(state[target]) > elements:
            raise _misfit(error, target, (elements,), state[target], path)
    _check_rest(model, keymap, sum(prod(shape) for shape in shapes.values()), path, error)


def check_dense_shapes(
    model: PreTrainedModel,
    shapes: Mapping[str, Shape],
    path: Path,
    *,
    component: str | None = None,
    encoded: Iterable[str] = (),
) -> None:
    """The same for tensors of which each is known to be dense, as in a store.

    Args:
        model: The skeleton.
        shapes: Shapes by name.
        path: ``config.json``, for messages.
        component: The component that ``model`` is of a larger checkpoint, or None.
        encoded: Names of further weights, whose shapes are compared elsewhere.

    Raises:
        LoadError: As :func:`check_shapes`.
    """
    check_shapes(model, map_dense(model, [*shapes, *encoded], component=component), shapes, path, LoadError)


def _check_rest(model: PreTrainedModel, keymap: KeyMap, elements: int, path: Path, error: type[CoterieError]) -> None:
    """Bounds what no tensor gives: buffers that are computed, and parameters that may be missing."""
    given = set(keymap.dense.values())
    given.update(name for bank in keymap.banks for names in bank.targets.values() for name in names)
    given.update(name for bank in keymap.banks for twin in bank.tied for name in _all_of(bank.at(twin).targets))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    rest = {
        name: tensor.nbytes
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if name not in given and name not in tied and name not in tied.values()
    }
    if sum(rest.values()) > max(_ALWAYS, 2 * elements):
        name = max(rest, key=rest.__getitem__)
        raise error(
            f"{path} asks for {sum(rest.values()):,} bytes beside the weights, most of them for {name!r}: no model has "
            "so much that its weights do not fill.",
            advice="Compare its numbers of positions and sizes with the original's.",
            path=path,
            tensor=name,
            expected=2 * elements,
            got=sum(rest.values()),
        )


def rest_nbytes(model: PreTrainedModel) -> int:
    """Bytes of the buffers of a skeleton that no checkpoint holds: transformers computes them."""
    stored = model.state_dict().keys()
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in stored)


def _all_of(targets: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for names in targets.values() for name in names]


def _misfit(error: type[CoterieError], name: str, got: Shape, expected: Shape, path: Path) -> CoterieError:
    return error(
        f"{name!r} has the shape {got}, the model that {path} describes needs {expected}.",
        advice="config.json and the weights do not belong together.",
        path=path,
        tensor=name,
        expected=expected,
        got=got,
    )
