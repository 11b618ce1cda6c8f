"""Keeps an answer to a form: which tokens may come next is computed by llguidance, which compiles the form."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from coterie.errors import InputError, MissingPackageError, UnsupportedError
from coterie.generation.grammar import Grammar
from coterie.hf import form_process
from coterie.hf.limited import TooLong, run_limited
from coterie.spec import install_advice

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedTokenizerBase

SECONDS = 2
"""Seconds of processor time that a form may take to be compiled; ordinary ones take hundredths."""
_WALL_SECONDS = 10.0
_MEMORY = 512 << 20
"""Address space of the process that tries a form out."""

_KEPT = 32
_KEPT_NBYTES = 4 << 20
"""Forms that are kept compiled, and what their descriptions may have together."""
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_items_in_row": 2_000,
    "max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False,
}  # fmt: skip
"""What a form may take of time and memory: a state of its lexer is some 2 KB."""
_LONGEST_MESSAGE = 300


class Matcher:
    """A logits processor: leaves the tokens with which an answer still has its form.

    Args:
        matcher: llguidance's, of this answer alone.
        prompt: Tokens of the prompt.
    """

    def __init__(self, matcher: Any, *, prompt: int) -> None:
        self._matcher = matcher
        self._seen = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Rules out what must not come next.

        Raises:
            InputError: If the form takes too much to be followed.
        """
        new = input_ids[0, self._seen :].tolist()
        self._seen += len(new)
        if new and not self._matcher.consume_tokens(new):
            raise self._failed()
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._failed()
        allowed = _unpacked(bits, scores.shape[-1]).to(scores.device)
        kept = scores.masked_fill(~allowed, -torch.inf)
        if not bool(torch.isfinite(kept).any()):
            # The model's own settings rule out all that the form allows: the form counts.
            kept = torch.zeros_like(scores).masked_fill_(~allowed, -torch.inf)
        return kept

    def _failed(self) -> InputError:
        return _unusable(self._matcher.get_error() or "it cannot be followed")


class Compiler:
    """Compiles forms for one tokenizer, and keeps those that were used last.

    Args:
        tokenizer: The tokenizer.
        ends: Tokens that end an answer.
        vocabulary: Tokens that the model can say.

    Raises:
        MissingPackageError: If llguidance is not installed.
        UnsupportedError: If the tokenizer is of a kind that it does not know.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], vocabulary: int) -> None:
        if find_spec("llguidance") is None:
            raise MissingPackageError(
                "Answers in a given form need llguidance, which is not installed.",
                advice=install_advice("serve"),
                package="llguidance",
            )
        self._tokens = _tokens(tokenizer, ends, vocabulary)
        self._made: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar, *, prompt: int) -> Matcher:
        """What keeps one answer to a form.

        Args:
            grammar: The form.
            prompt: Tokens of the prompt.

        Raises:
            InputError: If the form cannot be compiled, allows no text, or takes too much. Fact ``field``.
        """
        return Matcher(self.compile(grammar).deep_copy(), prompt=prompt)

    def compile(self, grammar: Grammar) -> Any:
        """The form compiled; raises as :meth:`matcher`."""
        with self._lock:
            found = self._made.get(grammar.digest)
            if found is None:
                found = len(grammar.text), self._compile(grammar)
                self._made[grammar.digest] = found
                while len(self._made) > _KEPT or sum(size for size, _ in self._made.values()) > _KEPT_NBYTES:
                    self._made.popitem(last=False)
            self._made.move_to_end(grammar.digest)
        if isinstance(found[1], str):
            raise _unusable(found[1])
        return found[1]

    def _compile(self, grammar: Grammar) -> Any:
        """The form, or why it is none: it must not cost as much again."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            described = grammar.compiled()
        except Exception as error:  # the converter of GBNF raises no other
            return str(error) or type(error).__name__
        problem = _tried(described)
        if problem:
            return problem
        made = LLMatcher(self._tokens, described, limits=LLParserLimits(**_LIMITS), log_level=0)
        if not made.is_error():
            # A form without an end shows only when it is asked what it begins with.
            trial = made.deep_copy()
            trial.compute_bitmask()
            if trial.is_error() or (trial.is_stopped() and not made.is_accepting()):
                return "no text has it"
        return made.get_error() if made.is_error() else made


def _tried(described: str) -> str:
    """Why a form cannot be used, as a process of its own finds out: it may take more than there is."""
    request = json.dumps({"described": described, "limits": _LIMITS}).encode("ascii")
    try:
        written = run_limited(
            Path(form_process.__file__), request, ("llguidance",), memory=_MEMORY, seconds=SECONDS,
            wall_seconds=_WALL_SECONDS,
        )  # fmt: skip
    except TooLong:
        return f"it takes more than {SECONDS} s to be compiled"
    try:
        return str(json.loads(written))
    except ValueError:
        return "it takes too much memory"  # too little even to say so


_compilers: WeakKeyDictionary[Any, Compiler] = WeakKeyDictionary()
_making = threading.Lock()


def compiler_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], vocabulary: int) -> Compiler:
    """The compiler of a tokenizer, which is made once; arguments and errors as of :class:`Compiler`."""
    with _making:
        made = _compilers.get(tokenizer)
        if made is None:
            made = _compilers[tokenizer] = Compiler(tokenizer, ends, vocabulary)
        return made


def _tokens(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], vocabulary: int) -> Any:
    from llguidance.hf import from_tokenizer
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UnsupportedError(
            f"Answers of a model with a {type(tokenizer).__name__} cannot be kept to a form: only those with a "
            "tokenizer.json can.",
            field="grammar",
        )
    return from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=sorted(ends))


def _unpacked(bits: bytes, width: int) -> Tensor:
    """Bits, one for each token, as truth values [V]; those beyond are false."""
    made = np.zeros(width, dtype=np.uint8)
    given = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[:width]
    made[: len(given)] = given
    return torch.from_numpy(made).bool()


def _unusable(why: str) -> InputError:
    text = " ".join(why.replace("<non-verbose/>", "").split())[:_LONGEST_MESSAGE]
    return InputError(f"The form that the answer is to have cannot be used: {text.rstrip('.')}.", field="grammar")
