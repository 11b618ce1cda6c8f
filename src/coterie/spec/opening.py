"""How a model is opened: the one place where the options of opening have their names and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from coterie.errors import UsageError
from coterie.spec.defaults import DEFAULT_POLICY, DEFAULT_PREFETCH, DEFAULT_WARM, Missing, Prefetch
from coterie.spec.sizes import parse_bytes, parse_rate, share_nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The options of :func:`coterie.load`, which describes each; the command line has them under the same names."""

    memory: str | int | None = None
    expert_memory: str | int | None = None
    component: str | None = None
    missing: Missing | None = None
    source: str | Path | None = None
    eviction: str = DEFAULT_POLICY
    prefetch: Prefetch = DEFAULT_PREFETCH
    profile: str | Path | None = None
    warm: str | None = DEFAULT_WARM
    pin: str | int | None = None
    experts_per_token: int | None = None
    drop_cold: float | None = None
    max_context: int | None = None
    verify_reads: bool = False
    revision: str | None = None
    offline: bool = False
    max_rate: str | int | None = None
    threads: int | None = None

    def check(self) -> None:
        """Refuses what cannot be, whatever the model.

        Raises:
            UsageError: If an option has no such value, or needs another one.
        """
        for what, value, known in (
            ("missing policy", self.missing, get_args(Missing)),
            ("setting of prefetch", self.prefetch, get_args(Prefetch)),
        ):
            if value is not None and value not in known:
                raise UsageError.unknown(what, value, known)
        if self.source is not None and self.missing != "fetch":
            raise UsageError(
                f"source={str(self.source)!r} says where absent experts are fetched from, but nothing is to be "
                "fetched.",
                advice="Add missing='fetch', or leave the source out.",
                source=self.source,
            )
        check_rate(self.max_rate, offline=self.offline)
        if self.memory is not None:
            parse_bytes(self.memory, what="memory")
        if self.expert_memory is not None:
            share_nbytes(self.expert_memory, 1, "expert_memory")
        for name, number in (("threads", self.threads), ("max_context", self.max_context)):
            if number is not None and number < 1:
                raise UsageError(f"{name} must be at least 1, not {number}.", got=number)
        if self.drop_cold is not None and not 0 < self.drop_cold <= 1:
            raise UsageError(
                f"drop_cold is a share of a token's highest gate weight, above 0 and up to 1, not {self.drop_cold}.",
                advice="0.05 leaves out little; leave it out to read every expert.",
                got=self.drop_cold,
            )
        if self.pin is not None:
            self._check_pin(self.pin)

    def _check_pin(self, pin: str | int) -> None:
        if self.profile is None:
            raise UsageError(
                f"pin={pin!r} keeps what a profile says is used most, and none was given.",
                advice="Give the model's profile, or leave pin out.",
                got=pin,
            )
        if self.warm is None:
            raise UsageError("What is pinned is warmed; warm=None says that nothing is.", advice="Leave pin out.")
        share_nbytes(pin, 1, "pin")


def check_rate(max_rate: str | int | None, *, offline: bool) -> None:
    """Refuses a limit of what is read over the network that is no rate, or where nothing is read there.

    Raises:
        UsageError: If it is so.
    """
    if max_rate is None:
        return
    parse_rate(max_rate)
    if offline:
        raise UsageError(
            f"max_rate={str(max_rate)!r} limits what is read over the network, and offline says that nothing is.",
            advice="Leave one of them out.",
            got=max_rate,
        )


def check_recording(drop_cold: float | None, what: str) -> None:
    """Refuses to record what experts do where some of them are left out for what happens to be in memory.

    Args:
        drop_cold: As of :class:`Opening`.
        what: What is to be recorded, such as ``profile``.

    Raises:
        UsageError: If something is left out.
    """
    if drop_cold is not None:
        raise UsageError(
            f"With drop_cold no {what} is recorded: what it would say depends on what was in memory.",
            advice=f"Record the {what} without it.",
            got=drop_cold,
        )
