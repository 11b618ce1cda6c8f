"""A Mixture-of-Experts layer with quantised gated experts, computed where they lie, in whatever order they come."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence

import torch

from coterie.errors import UsageError
from coterie.native.library import Library
from coterie.native.matmul import check_fields, rows_served
from coterie.native.schemes import SCHEME_CODES
from coterie.native.workspace import ExpertsCall, Located, PassMemory, Workspace

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""Activations that the library computes; their order is that of the C code."""

SchemedFields = tuple[str, Sequence[torch.Tensor]]
"""The scheme of a matrix, and its fields."""


class ExpertsKernel:
    """The experts of all layers of one shape: ``(act(x Wg) * (x Wu)) Wd``, times the gate weight, summed per token.

    Activations are bfloat16; all that is between is float32 but the input of down, and each token's sum is rounded
    once. Where an expert has ``least_rows`` tokens or more, its weights are rounded to bfloat16 and multiplied with all
    of them as matrices. A token's bits depend neither on threads, nor on the order in which experts come, nor on the
    other tokens but by whether they are so many.
    Can be used by several threads at once.

    Args:
        library: The library.
        schemes: Those of ``SCHEME_CODES`` in which matrices of experts may be; each may be in another.
        activation: One of ``ACTIVATIONS``.
        num_experts: E; ids from E on are left out.
        width: D.
        inner: F; gate_up is [2F, D], gate first, and down [D, F].

    Attributes:
        library: That given, as are ``schemes``, ``activation``, ``num_experts``, ``width`` and ``inner``.
        least_rows: Tokens of one expert from which on they are computed together.

    Raises:
        UsageError: If the library does not serve that (see :meth:`served`).
    """

    def __init__(
        self, library: Library, *, schemes: Collection[str], activation: str, num_experts: int, width: int, inner: int
    ) -> None:
        if not self.served(library, schemes=schemes, activation=activation, width=width, inner=inner):
            named = ", ".join(sorted(schemes))
            raise UsageError(
                f"Experts [{2 * inner}, {width}] in {named} with activation {activation!r} are not served.",
                schemes=tuple(sorted(schemes)),
                activation=activation,
                width=width,
                inner=inner,
            )
        if library.functions.coterie_experts_call_bytes() != _CALL_BYTES:
            raise AssertionError("experts_call and its mirror differ")
        self.library = library
        self.schemes = frozenset(schemes)
        self.activation = activation
        self.num_experts = num_experts
        self.width = width
        self.inner = inner
        self.least_rows = int(library.functions.coterie_gemm_least_rows(library.level))
        self._shape = (library.level, ACTIVATIONS.index(activation), width, inner)
        # Taken out while in use, so that no two threads have the same one.
        self._idle: list[Workspace] = []

    @staticmethod
    def served(library: Library, *, schemes: Collection[str], activation: str, width: int, inner: int) -> bool:
        """Whether the library computes such experts."""
        return activation in ACTIVATIONS and all(
            scheme in SCHEME_CODES and rows_served(library, scheme, size)
            for scheme in schemes
            for size in (width, inner)
        )

    def locate(self, expert: int, gate_up: SchemedFields, down: SchemedFields) -> Located:
        """Checks an expert's fields and notes where they are.

        The result is good for as long as the tensors stay where they are.

        Args:
            expert: Its id.
            gate_up: Scheme of gate_up, and its codes and scales, as :class:`PackedMatrix` has them, or if it is native
                the matrix alone, bfloat16.
            down: Those of down.

        Raises:
            UsageError: If they are not such fields.
        """
        return (
            expert,
            *self._place(gate_up, (2 * self.inner, self.width)),
            *self._place(down, (self.width, self.inner)),
        )

    def _place(self, matrix: SchemedFields, shape: tuple[int, int]) -> tuple[int, int, int]:
        scheme, fields = matrix
        if scheme not in self.schemes:
            raise UsageError.unknown("scheme", scheme, sorted(self.schemes))
        check_fields(scheme, shape, fields)
        return SCHEME_CODES[scheme], fields[0].data_ptr(), fields[1].data_ptr() if len(fields) > 1 else 0

    def begin(
        self,
        x_TD: torch.Tensor,
        index_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        memory: PassMemory | None = None,
        *,
        rows: bool = False,
    ) -> ExpertsPass:
        """Starts a pass.

        Args:
            x_TD: bfloat16 [T, D].
            index_TK: The experts of each token, integers [T, K]; ids of E or more are left out.
            weights_TK: Gate weights [T, K]; float32 and bfloat16 are used as they are.
            memory: Shared by the layers of a forward pass; without it, many tokens take new memory in each of them.
            rows: Whether each token is to have the bits that it has alone, so that none are multiplied as a matrix.

        Raises:
            UsageError: If the tensors are something else, or an id is negative.
        """
        tokens = x_TD.shape[0]
        if x_TD.dtype != torch.bfloat16 or x_TD.dim() != 2 or x_TD.shape[1] != self.width:
            got = f"{x_TD.dtype} {list(x_TD.shape)}"
            raise UsageError(f"Tokens must be bfloat16 [T, {self.width}], not {got}.", got=got)
        if index_TK.dim() != 2 or index_TK.shape[0] != tokens or index_TK.shape != weights_TK.shape:
            got = f"{list(index_TK.shape)} and {list(weights_TK.shape)}"
            raise UsageError(f"Choices and gate weights must be [{tokens}, K], not {got}.", got=got)
        if not (x_TD.is_cpu and index_TK.is_cpu and weights_TK.is_cpu):
            raise UsageError("Tokens, choices and gate weights must lie in memory.")
        if index_TK.dtype != torch.int64:
            index_TK = index_TK.to(torch.int64)
        if weights_TK.dtype not in (torch.float32, torch.bfloat16):
            weights_TK = weights_TK.float()
        workspace = self._workspace(tokens, index_TK.shape[1])
        # Held until C has read them: a copy made here has no other owner.
        index_TK, weights_TK = index_TK.contiguous(), weights_TK.contiguous()
        experts = workspace.route(index_TK, weights_TK)
        if experts is None:
            self._idle.append(workspace)
            raise UsageError("An expert's id is negative.")
        going = ExpertsPass(self, workspace, x_TD.contiguous(), index_TK, experts, memory)
        if not rows and tokens >= self.least_rows:
            workspace.make_scratch()
        return going

    def _workspace(self, tokens: int, choices: int) -> Workspace:
        try:
            workspace = self._idle.pop()
            if workspace.serves(tokens, choices):
                return workspace
        except IndexError:
            pass
        workspace = Workspace(self.library, max(tokens, 1), max(choices, 1), self.num_experts)
        call = workspace.call
        call.level, call.activation, call.width, call.inner = self._shape
        return workspace

    def release(self, workspace: Workspace) -> None:
        """Takes a workspace back."""
        self._idle.append(workspace)


class ExpertsPass:
    """One pass through a layer: experts are computed as they come, then summed. From :meth:`ExpertsKernel.begin`.

    Attributes:
        experts: Ids of the experts that got a token, ascending.
    """

    def __init__(
        self,
        kernel: ExpertsKernel,
        workspace: Workspace,
        x_TD: torch.Tensor,
        index_TK: torch.Tensor,
        experts: list[int],
        memory: PassMemory | None,
    ) -> None:
        self.experts = experts
        self._kernel = kernel
        self._workspace: Workspace | None = workspace
        self._x_TD = x_TD
        self._index_TK = index_TK
        call = workspace.call
        pairs, width = call.tokens * call.choices, kernel.width
        self._intermediate = workspace.intermediate(pairs * (4 * width + 2 * kernel.inner) or 1, memory)
        call.x = x_TD.data_ptr()
        call.rows = self._intermediate.data_ptr()
        call.hidden = call.rows + 4 * pairs * width
        call.out = None
        # For the whole pass, because scratch is made for so many.
        call.threads = kernel.library.threads
        call.scratch = None

    def compute(self, located: Sequence[Located]) -> None:
        """Computes some of the experts; those of the last call are better given to :meth:`finish`.

        Args:
            located: From :meth:`ExpertsKernel.locate`, in any order. Their memory must stay until this returns.

        Raises:
            UsageError: If one was not chosen or has been computed, or the pass is over.
        """
        if self._workspace is None:
            raise UsageError("This pass is over.")
        workspace = self._workspace
        try:
            workspace.fill(located)
        except ValueError:  # more experts than there is room for
            raise UsageError(f"{len(located)} experts were given, {len(self.experts)} chosen.") from None
        status = self._kernel.library.functions.coterie_experts(workspace.address)
        if status > 0:
            expert = located[status - 1][0]
            raise UsageError(f"Expert {expert} was not chosen, or has been computed already.", expert=expert)
        if status < 0:
            raise UsageError(f"{-status} of the experts that were chosen have not been computed.", missing=-status)

    def finish(self, located: Sequence[Located] = (), *, norms_TK: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the last experts and returns the sums, bfloat16 [T, D].

        Args:
            located: As for :meth:`compute`.
            norms_TK: If given, float32 [T, K]: the Euclidean norm of what each choice adds, gate weight included, is
                written here. Choices that are left out stay as they are.

        Raises:
            UsageError: As :meth:`compute`; and if experts are missing.
        """
        if self._workspace is None:
            raise UsageError("This pass is over.")
        out_TD = torch.empty_like(self._x_TD)
        call = self._workspace.call
        call.out = out_TD.data_ptr() or None
        if norms_TK is not None:
            if (
                norms_TK.shape != self._index_TK.shape
                or norms_TK.dtype != torch.float32
                or not norms_TK.is_contiguous()
            ):
                got = f"{norms_TK.dtype} {list(norms_TK.shape)}"
                raise UsageError(f"Norms must be contiguous float32 {list(self._index_TK.shape)}, not {got}.", got=got)
            call.ids, call.norms = self._index_TK.data_ptr() or None, norms_TK.data_ptr() or None
        try:
            self.compute(located)
        finally:
            call.out = call.ids = call.norms = None
        self._kernel.release(self._workspace)
        self._workspace = None
        return out_TD


_CALL_BYTES = ctypes.sizeof(ExpertsCall)
