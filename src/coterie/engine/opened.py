"""An open model with what makes its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.engine.processors import Processors
from coterie.engine.runtime import Runtime
from coterie.hf.tokenizer import embedding_rows

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
        directory = model.coterie.source.directory
        return cls(model=model, processors=Processors(directory, embedding_rows=embedding_rows(model)))

    @property
    def runtime(self) -> Runtime:
        """The streaming side of the model."""
        runtime: Runtime = self.model.coterie
        return runtime
