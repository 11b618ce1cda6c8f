"""Why an expert is read."""

from __future__ import annotations

from enum import Enum


class Cause(Enum):
    """Why an expert is read: with it reads are counted, and what nobody has asked for yet is told apart.

    Attributes:
        DEMAND: A lease asks for it.
        PREDICTION: It will probably be asked for next.
        ANNOUNCEMENT: A prefill has said that it will ask for it.
        WARMING: It is worth having, whoever asks for it.
    """

    DEMAND = "demand"
    PREDICTION = "prediction"
    ANNOUNCEMENT = "announcement"
    WARMING = "warming"
