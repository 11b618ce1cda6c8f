"""The transformers plug-in: streamed banks in place of stacked experts, router replacement, guards."""

from coterie.integration.attach import Attachment
from coterie.integration.away import AwayModules, cover
from coterie.integration.embedding_rows import EmbeddingRows
from coterie.integration.guards import install_guards
from coterie.integration.linear import EncodedWeight, QuantisedLinears, round_as_stock
from coterie.integration.norms import install_native_norms
from coterie.integration.quantizer import StreamingConfig, register, strip_plugin_marks
from coterie.integration.row_mixers import why_apart
from coterie.integration.row_rooms import RowRooms
from coterie.integration.rows import RowWay, row_ways, rows_together
from coterie.integration.rows_foretold import why_not_exact
from coterie.integration.token_forwards import install_native_layers
from coterie.integration.token_layer import TokenLayer

__all__ = [
    "Attachment",
    "AwayModules",
    "EmbeddingRows",
    "EncodedWeight",
    "QuantisedLinears",
    "RowRooms",
    "RowWay",
    "StreamingConfig",
    "TokenLayer",
    "cover",
    "install_guards",
    "install_native_layers",
    "install_native_norms",
    "register",
    "round_as_stock",
    "row_ways",
    "rows_together",
    "strip_plugin_marks",
    "why_apart",
    "why_not_exact",
]
