"""Codes chosen for what a matrix is multiplied with: GPTQ, scales fitted to the codes, and coordinate descent."""

from coterie.quant.calibrated.choosing import Chosen, choose_codes, shrunk
from coterie.quant.calibrated.errors import MatrixError

__all__ = ["Chosen", "MatrixError", "choose_codes", "shrunk"]
