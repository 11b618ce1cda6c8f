"""Victim choice on (key → bytes), and a simulator that replays recorded traces through the same code. No tensors."""

from coterie.eviction.belady import belady, compulsory
from coterie.eviction.lfru import LfruPolicy
from coterie.eviction.lfu import LfuPolicy
from coterie.eviction.lru import LruPolicy
from coterie.eviction.markov import MarkovPolicy
from coterie.eviction.policy import POLICY_NAMES, TRUST, check_policy, make_policy
from coterie.eviction.prompt_use import LAST_TOKENS, TURNED_OVER, Observing, PromptUse
from coterie.eviction.protocol import EvictionPolicy
from coterie.eviction.recorded import RecordedTrace, read_trace
from coterie.eviction.replay import Knee, ReplayReport, ReplayRow, knee, replay, simulations
from coterie.eviction.simulator import compare, simulate
from coterie.eviction.timeline import Timeline, TimelineLayer, TimelineStep, timeline
from coterie.eviction.trace import Group, Outcome, Scope
from coterie.eviction.trust import TrustPolicy

__all__ = [
    "LAST_TOKENS",
    "POLICY_NAMES",
    "TRUST",
    "TURNED_OVER",
    "EvictionPolicy",
    "Group",
    "Knee",
    "LfruPolicy",
    "LfuPolicy",
    "LruPolicy",
    "MarkovPolicy",
    "Observing",
    "Outcome",
    "PromptUse",
    "RecordedTrace",
    "ReplayReport",
    "ReplayRow",
    "Scope",
    "Timeline",
    "TimelineLayer",
    "TimelineStep",
    "TrustPolicy",
    "belady",
    "check_policy",
    "compare",
    "compulsory",
    "knee",
    "make_policy",
    "read_trace",
    "replay",
    "simulate",
    "simulations",
    "timeline",
]
