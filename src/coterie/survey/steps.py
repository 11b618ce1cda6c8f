"""Material as a row of steps: what is read next, and how far its file has come then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from coterie.evaluate.texts import beginning
from coterie.evaluate.windows import plan_windows
from coterie.files.text import text_parts
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.hf.tokenizer import encode_text
from coterie.profiles import Mark
from coterie.survey.material import Material
from coterie.survey.reading import Piece, naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step through a file.

    Attributes:
        file: Which.
        piece: What is read; None where only the file's end is reached.
        position: How far the file is counted with it, in tokens, or as 1 for a sound or picture; None if no further.
        done: Whether nothing is left of the file.
        last: Whether it is the file's last step, for all that is to be read of it now.
        nbytes: Bytes of the file that are behind it, since the step before.
    """

    file: Material
    piece: Piece | None = None
    position: int | None = None
    done: bool = False
    last: bool = False
    nbytes: int


class Steps:
    """Makes the steps through files.

    Args:
        processors: Of the model.
        room: Tokens of a text in a window.
        limit: The most tokens of each text.
        progress: Name of a file → how far it has been counted before.
    """

    def __init__(
        self, processors: Processors, *, room: int, limit: int | None, progress: Callable[[str], Mark]
    ) -> None:
        self._processors = processors
        self._prefix = beginning(processors.tokenizer)
        self._room = room
        self._limit = limit
        self._progress = progress

    def through(self, files: Iterable[Material]) -> Iterator[Step]:
        """The steps through files, in order.

        Raises:
            InputError: If a file cannot be used.
        """
        for one in files:
            before = self._progress(one.name)
            if before.done:
                yield Step(file=one, last=True, nbytes=one.nbytes)
            elif one.kind == "text":
                yield from self._text(one, before.position)
            else:
                yield Step(file=one, piece=self._medium(one), position=1, done=True, last=True, nbytes=one.nbytes)

    def _medium(self, one: Material) -> Piece:
        audios, images = ([one.path] if one.kind == kind else [] for kind in ("speech", "images"))
        with naming(str(one.path)):
            inputs: dict[str, Any] = dict(build_inputs(self._processors, "", images=images, audios=audios))
        return Piece(domain=one.domain, file=str(one.path), inputs=inputs)

    def _text(self, one: Material, counted: int) -> Iterator[Step]:
        before = earlier = told = 0
        with naming(str(one.path)):
            for part in text_parts(one.path):
                ids = encode_text(self._processors.tokenizer, part)
                nbytes = len(part.encode("utf-8"))
                # One more than there are: nothing is asked about the last token, and it is to be counted, too.
                for window in plan_windows(len(ids) + 1, self._room):
                    end = before + window.inputs.stop
                    if self._limit is not None:
                        end = min(end, self._limit)
                    begin = max(before + window.inputs.start, counted)
                    cut = end == self._limit
                    done = one.nbytes if cut else earlier + nbytes * window.inputs.stop // len(ids)
                    piece = self._window(one, ids[begin - before : end - before]) if begin < end else None
                    position = end if piece is not None else None
                    yield Step(file=one, piece=piece, position=position, last=cut, nbytes=max(0, done - told))
                    told = done
                    if cut:
                        return
                before, earlier = before + len(ids), earlier + nbytes
            yield Step(file=one, position=before, done=True, last=True, nbytes=max(0, one.nbytes - told))

    def _window(self, one: Material, ids: list[int]) -> Piece:
        tokens = torch.tensor([[*self._prefix, *ids]], dtype=torch.int64)
        return Piece(domain=one.domain, file=str(one.path), inputs={"input_ids": tokens})
