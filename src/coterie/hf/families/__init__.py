"""How each family of experts classes holds its experts, and which class belongs to which family."""

from coterie.hf.families.arrangement import Arrangement, Family, FieldPlace
from coterie.hf.families.registry import ADAPTED, DECORATED, OUT_OF_SCOPE, arrangement_of

__all__ = ["ADAPTED", "DECORATED", "OUT_OF_SCOPE", "Arrangement", "Family", "FieldPlace", "arrangement_of"]
