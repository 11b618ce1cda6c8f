"""An open model with what makes its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.engine.opening import open_streamed
from coterie.engine.runtime import Runtime
from coterie.engine.source import text_component
from coterie.errors import CheckpointNotFoundError, UsageError
from coterie.files.naming import resolve_path
from coterie.generation.processors import Processors
from coterie.hf.configs import component_of_class
from coterie.hf.tokenizer import embedding_rows
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model and the processors of its directory.

    Attributes:
        model: From :func:`coterie.load`.
        processors: Checked against its embedding.
    """

    model: PreTrainedModel
    processors: Processors

    @classmethod
    def of(cls, model: PreTrainedModel) -> OpenModel:
        """Adds the processors to a model.

        Raises:
            LoadError: If there is no tokenizer, or it is another model's.
        """
        source = model.coterie.source
        made = Processors(source.directory, embedding_rows=embedding_rows(model), store=source.store)
        return cls(model=model, processors=made)

    @classmethod
    def open(cls, path: str, opening: Opening, *, whole: bool = False) -> OpenModel:
        """Opens a model, of an omni model without a named component the one for texts; whoever opens it closes it.

        Args:
            path: The model.
            opening: How it is opened.
            whole: Open a whole omni model even if no component is named.

        Raises:
            UsageError: If it is a talker without its thinker.
            CoterieError: As :func:`coterie.load`, and as :meth:`of`.
        """
        if opening.component == "talker":
            raise _no_reader(path)
        if opening.component is None and not whole:
            part = text_component(path, revision=opening.revision, offline=opening.offline, max_rate=opening.max_rate)
            opening = replace(opening, component=part)
        model = open_streamed(path, opening)
        try:
            if component_of_class(type(model), model.config) == "talker":
                raise _no_reader(path)
            return cls.of(model)
        except BaseException:
            model.coterie.close()
            raise

    @property
    def runtime(self) -> Runtime:
        """The streaming side of the model."""
        runtime: Runtime = self.model.coterie
        return runtime


def _no_reader(path: str) -> UsageError:
    return UsageError(
        f"The talker of {path} speaks what the thinker has written, and answers no prompt by itself.",
        advice="Leave the component out and add --speak, or open the thinker.",
    )


def processors(model: str | Path | PreTrainedModel) -> Processors:
    """What makes a model's inputs of texts, pictures and sounds; for ``coterie.build_inputs`` and ``chat_inputs``.

    Unlike ``AutoProcessor``, it needs no torchvision for models that know video.

    Args:
        model: From :func:`coterie.load`; or a store, a checkpoint directory or ``bundled``.

    Raises:
        LoadError: If there is no tokenizer, or it is another model's.
        CheckpointNotFoundError: If there is no such directory.
    """
    if not isinstance(model, str | Path):
        return OpenModel.of(model).processors
    path = Path(resolve_path(model))
    if not path.is_dir():
        raise CheckpointNotFoundError(
            f"There is no directory {str(model)!r}.",
            advice="Of a model from the Hub: load it, and pass the model instead of its name.",
            path=path,
        )
    return Processors(path)
