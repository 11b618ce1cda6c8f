"""Linear layers outside experts: those that round as stock transformers do, and those with weights in a scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.errors import LoadError
from coterie.hf.keymap import plain_targets
from coterie.kernels import quantised_linear, stock_linear
from coterie.native import MOST_ROWS, PackedMatrix, library
from coterie.passes.forwards import change_class
from coterie.quant import Scheme, StoredMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ReadParts = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Reads the codes and scales of a weight."""


class StockLinear(nn.Linear):
    """``nn.Linear`` with a weight that wants no gradients and the arithmetic of one that does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        # Every linear layer of every step comes here. Module.__getattr__, by which self.weight is found, costs more
        # than the check below does.
        parameters: dict[str, Any] = self._parameters
        try:
            return stock_linear(input, parameters["weight"], parameters["bias"])
        except KeyError:  # parametrised
            return stock_linear(input, self.weight, self.bias)


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is kept in a scheme.

    In bfloat16 the native library multiplies by the codes, where it was built and serves the shape; else the weight is
    dequantised a part at a time when it is computed with.

    Args:
        linear: The layer whose place it takes; its bias is taken over.
        matrix: How the weight is stored.

    Attributes:
        in_features: Inputs.
        out_features: Outputs.
        scheme: Scheme of the weight.
        dtype: Dtype that the weight stands for.
        codes: The weight's codes, once :meth:`fill` has been called.
        scales: Their scales.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    # transformers initialises what lacks this mark.
    _is_hf_initialized = True

    def __init__(self, linear: nn.Linear, matrix: StoredMatrix) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows_and_columns
        self.scheme: Scheme = matrix.scheme
        self.dtype = linear.weight.dtype
        self._packed: PackedMatrix | None = None
        self.register_parameter("bias", linear.bias)
        self.training = linear.training

    def fill(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Takes the weight; after loading, because transformers empties every buffer that is there before."""
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        native = library()
        if native is not None and PackedMatrix.served(native, self.scheme.name, self.in_features):
            self._packed = PackedMatrix(native, self.scheme.name, codes, scales)

    @property
    def packed(self) -> PackedMatrix | None:
        """The weight as the native library multiplies by it, where it does."""
        return self._packed

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight, dequantised anew each time: for the few classes that use it beside the layer's forward.

        Before :meth:`fill`, a tensor without content that transformers' initialisation passes over.
        """
        if "codes" not in self._buffers:
            empty = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")
            empty.__dict__["_is_hf_initialized"] = True
            return empty
        return self.scheme.dequantise((self.codes, self.scales), self.in_features, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        packed, bias = self._packed, self._parameters["bias"]
        if packed is not None and input.dtype is torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            # One token of each of a few sequences: none may see what the others are.
            rows = input.dim() == 3 and input.shape[1] == 1 and input.shape[0] <= MOST_ROWS
            output = packed(input.reshape(-1, self.in_features), rows=rows).view(*input.shape[:-1], self.out_features)
            return output if bias is None else output + bias
        buffers: dict[str, Any] = self._buffers
        return quantised_linear(input, buffers["codes"], buffers["scales"], self.scheme, bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        bias = self._parameters["bias"] is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, scheme={self.scheme.name}"


class QuantisedLinears:
    """The linear layers of a model whose weights a source has in a scheme.

    Args:
        weights: Checkpoint name of a weight → what reads its codes and scales, and their shapes and dtypes, in order.
        scheme: Their scheme.
        component: The component that the model is of a larger checkpoint, or None.
    """

    def __init__(
        self,
        weights: Mapping[str, tuple[ReadParts, tuple[tuple[str, tuple[int, ...]], ...]]],
        scheme: Scheme,
        component: str | None = None,
    ) -> None:
        self._weights = weights
        self._scheme = scheme
        self._component = component
        self._modules: dict[str, QuantisedLinear] = {}

    def replace(self, model: PreTrainedModel) -> None:
        """Puts layers without weights in the place of the skeleton's, before anything is loaded.

        Raises:
            LoadError: If a weight is that of no linear layer, or of one of another shape.
        """
        targets = plain_targets(model, self._weights, component=self._component)
        modules = dict(model.named_modules())
        for name, (_, facts) in self._weights.items():
            path, _, parameter = targets.get(name, "").rpartition(".")
            module = modules.get(path)
            if type(module) is not nn.Linear or parameter != "weight":
                raise LoadError(
                    f"{name!r} is stored in {self._scheme.name}, but in {type(model).__name__} it is not the weight of "
                    "a plain linear layer.",
                    advice="Another release of transformers may have built the model otherwise; extract it again.",
                    tensor=name,
                )
            outputs, inputs = module.weight.shape
            matrix = StoredMatrix(parameter=name, shape=(outputs, inputs), scheme=self._scheme, transposed=False)
            expected = tuple((dtype, shape) for _, dtype, shape in matrix.fields())
            if facts != expected:
                raise LoadError(
                    f"{name!r} is stored as {facts}, a layer of {outputs} × {inputs} needs {expected}.",
                    advice="config.json and the weights do not belong together.",
                    tensor=name,
                    expected=expected,
                    got=facts,
                )
            self._modules[name] = QuantisedLinear(module, matrix)
            model.set_submodule(path, self._modules[name])

    def fill(self) -> None:
        """Reads every weight into its layer, after everything else is loaded."""
        for name, module in self._modules.items():
            module.fill(*self._weights[name][0]())


def round_as_stock(model: nn.Module) -> None:
    """Makes every plain linear layer of this model a :class:`StockLinear`; its weights, name and hooks stay."""
    for module in model.modules():
        # Only what computes by nn.Linear's own forward: subclasses, and instances with a stranger's forward, stay.
        if type(module) is nn.Linear:
            change_class(module, StockLinear)
