"""Room for the logits of a forward pass that is asked for those of many positions.

A budget provides for the last position's logits, as ``generate`` reads no others. Those of all positions are made when
the layers' activations are gone, and may take their room; a pass whose logits do not fit into it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.errors import ContextLengthError
from coterie.passes.forward_call import ForwardCall
from coterie.spec import LAST_POSITIONS, ContextShape, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRoom:
    """What a budget leaves for logits.

    Attributes:
        shape: The model's dimensions, of which the budget was made.
        beside: Bytes that were kept free for logits outside the budget.
    """

    shape: ContextShape
    beside: int = 0

    def tokens(self, call: ForwardCall, most: int) -> int:
        """Tokens whose activations a pass takes: its own, or as many as have room for its logits.

        Args:
            call: The pass.
            most: Tokens that the budget was made for.

        Raises:
            ContextLengthError: If there is no room for its logits even when nobody else computes.
        """
        own = call.batch * call.tokens
        if call.logits <= LAST_POSITIONS:
            return own
        positions = call.batch * call.logits
        taken = max(own, self.shape.tokens_for_logits(own, positions, most, beside=self.beside))
        if taken > most:
            nbytes = positions * self.shape.vocabulary * self.shape.itemsize
            raise ContextLengthError(
                f"The logits of {positions} positions take {format_bytes(nbytes)}, for which the memory budget has no "
                f"room: it was made for the activations of {most} tokens, and for the last position's logits.",
                advice="Pass logits_to_keep=1 for those of the last position, as generate() does, run fewer tokens at "
                "once, or open the model with a larger max_context.",
                tokens=own,
                max_context=most,
            )
        return taken
