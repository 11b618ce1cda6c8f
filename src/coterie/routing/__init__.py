"""What to do about experts that are absent: masks in the router, and policies on the (ids, weights) it chose."""

from coterie.routing.availability import Availability
from coterie.routing.families import RouterFamily, adapt_router, require_family, router_family, router_rows
from coterie.routing.lightest import light_choices
from coterie.routing.locate import RouterSlot, find_router
from coterie.routing.policies import Routed, absent_pairs, drop, error, leave_out
from coterie.routing.preview import Preview, preview_of
from coterie.routing.selective import Selection, SelectiveRouter
from coterie.routing.sites import RoutingSupport, adapt_routing, routing_support
from coterie.routing.substitution import nearest, substitution_table

__all__ = [
    "Availability",
    "Preview",
    "Routed",
    "RouterFamily",
    "RouterSlot",
    "RoutingSupport",
    "Selection",
    "SelectiveRouter",
    "absent_pairs",
    "adapt_router",
    "adapt_routing",
    "drop",
    "error",
    "find_router",
    "leave_out",
    "light_choices",
    "nearest",
    "preview_of",
    "require_family",
    "router_family",
    "router_rows",
    "routing_support",
    "substitution_table",
]
