"""Replicas on Ray Serve: started, found, asked, and started anew where they end."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException

from coterie.cluster.connection import LOCAL, connected
from coterie.cluster.placement import placement
from coterie.errors import CoterieError, ReplicaError
from coterie.server.refusals import Refusal
from coterie.server.replicas.answer import LostReplica
from coterie.server.replicas.ask import Ask, Part
from coterie.server.replicas.replica import Replica, ReplicaSettings

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
_ROUTERS = (
    "ray.serve.llm.request_router:PrefixCacheAffinityRouter",
    "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router:PrefixCacheAffinityRouter",
)
"""Where releases of Ray have the router that sends requests where their beginning was read; the first needs more."""
_ONGOING = 4096
"""Requests that Ray lets a replica have: how many may wait is the replica's own business."""
_UNLIKE_QUEUES = 2
"""Requests that a replica may have more than another before it no longer gets those whose beginning it has read."""
_HEALTH_S = 10.0
_GRACE_S = 10.0
_log = logging.getLogger("coterie.server")


class RayCluster:
    """Replicas that Ray Serve runs.

    Args:
        handle: Of their deployment.
        application: What Ray knows them as.
    """

    def __init__(self, handle: DeploymentHandle[Any], application: str) -> None:
        self._handle = handle
        self._answer = handle.options(method_name="answer", stream=True)
        self._application = application

    async def ask(self, ask: Ask) -> AsyncGenerator[Part]:
        """Has one of them answer.

        Raises:
            LostReplica: If it ended before the answer did.
            Refusal: If Ray takes no more.
        """
        response = self._answer.remote(ask)
        whole = False
        try:
            async for part in response:
                yield part
            whole = True
        except BackPressureError:
            raise Refusal(429, "Too many requests are waiting already.", code="queue_full", retry_after=5) from None
        except _LOST as error:
            raise LostReplica from error
        except RayTaskError as error:
            # What was raised in a replica is in its own log, under the request's id.
            raise Refusal(500, "Something went wrong in a replica; its log has more.") from error
        finally:
            if not whole:
                with suppress(Exception):
                    response.cancel()

    async def figures(self) -> list[bytes]:
        """What each counts, for Prometheus; nothing while Ray finds none of them."""
        try:
            found: list[bytes] = await self._handle.broadcast("figures").results_async()
        except (*_LOST, RayTaskError, RayServeException, RuntimeError):
            return []
        return found

    async def trouble(self) -> str | None:
        """Why none answers; None if one does."""
        try:
            application = serve.status().applications.get(self._application)
        except Exception as error:  # Ray is gone, in whatever way
            return f"Ray does not answer ({type(error).__name__})"
        states = [] if application is None else application.deployments.values()
        if any(state.replica_states.get("RUNNING", 0) for state in states):
            return None
        return "no replica runs"


@contextmanager
def replicas(address: str, count: int, settings: ReplicaSettings) -> Iterator[RayCluster]:
    """Starts replicas; ends them at the end.

    Args:
        address: Of a Ray cluster, such as ``host:6379`` or ``auto``; ``local`` starts one on this machine.
        count: Replicas.
        settings: How each serves.

    Raises:
        UsageError: If there is no such cluster, or no room in it.
        CoterieError: If a replica cannot open the model.
    """
    application = f"coterie-{uuid.uuid4().hex[:8]}"
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with connected(address):
        placed = placement(ray.nodes(), count, settings.opening)
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=count,
            ray_actor_options={"num_cpus": placed.cpus, "memory": placed.nbytes},
            max_ongoing_requests=_ONGOING,
            health_check_period_s=_HEALTH_S,
            graceful_shutdown_timeout_s=_GRACE_S,
            max_constructor_retry_count=1,
            request_router_config=_router(),
        )
        served = replace(settings, opening=replace(settings.opening, threads=placed.cpus))
        try:
            serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "ERROR"})
            try:
                handle = serve.run(deployment.bind(served), name=application, route_prefix=None)
            except RuntimeError as error:
                raise _failed(application) from error
            yield RayCluster(handle, application)
        finally:
            with suppress(Exception):
                serve.delete(application)
            if address == LOCAL:
                with suppress(Exception):
                    serve.shutdown()


def _router() -> RequestRouterConfig:
    """Sends a request where its beginning was read before, as long as that replica is not much busier than others."""
    for name in _ROUTERS:
        module, _, kind = name.partition(":")
        try:
            getattr(import_module(module), kind)
        except (ImportError, AttributeError):
            continue
        return RequestRouterConfig(
            request_router_class=name,
            request_router_kwargs={"imbalanced_threshold": _UNLIKE_QUEUES, "do_eviction": True},
        )
    _log.warning("this release of Ray has no routing by prefixes: replicas are chosen by their queues alone")
    return RequestRouterConfig()


def _failed(application: str) -> CoterieError:
    """Why replicas do not start, in the words of one of them."""
    found = serve.status().applications.get(application)
    messages = [] if found is None else [found.message, *(one.message for one in found.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("coterie.errors.")]
    reason = ours[-1].partition(": ")[2] if ours else (lines[-1] if lines else "Ray does not say why.")
    return ReplicaError(
        f"No replica could start: {reason}",
        advice="The model has to be at the same place on every machine, with Coterie of the same version.",
    )
