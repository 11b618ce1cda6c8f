"""Victim choice on (key → bytes), and a simulator that replays traces through the same code. No tensors, no I/O."""

from coterie.eviction.belady import belady, compulsory
from coterie.eviction.lfru import LfruPolicy
from coterie.eviction.lfu import LfuPolicy
from coterie.eviction.lru import LruPolicy
from coterie.eviction.markov import MarkovPolicy
from coterie.eviction.policy import DEFAULT_POLICY, POLICY_NAMES, make_policy
from coterie.eviction.protocol import EvictionPolicy
from coterie.eviction.simulator import compare, simulate
from coterie.eviction.trace import Group, Outcome, Scope

__all__ = [
    "DEFAULT_POLICY",
    "POLICY_NAMES",
    "EvictionPolicy",
    "Group",
    "LfruPolicy",
    "LfuPolicy",
    "LruPolicy",
    "MarkovPolicy",
    "Outcome",
    "Scope",
    "belady",
    "compare",
    "compulsory",
    "make_policy",
    "simulate",
]
