"""All experiments, in the order in which they are made, each with a small size that `make test` takes as well."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos import away, backups, connections, disks, kills, mixups, overload, soak, suites, workers
from benchmarks.chaos.lab import TINY
from benchmarks.chaos.results import Result


@dataclass(frozen=True)
class Experiment:
    """A function that tries to break a promise; its keyword arguments are the size, `short` a small one."""

    name: str
    run: Callable[..., Result]
    short: dict[str, Any] = field(default_factory=dict)


EXPERIMENTS = [
    Experiment("service-killed", kills.service_killed, {"kills": 2, "documents": 60, "checkpoint": TINY}),
    Experiment("worker-killed", workers.worker_killed, {"kills": 1, "clients": 4, "checkpoint": TINY}),
    Experiment(
        "overload",
        overload.overload,
        {
            "seconds": 6.0,
            "peak_seconds": 2.0,
            "texts": 16,
            "queue_tokens": 65_536,
            "deadline_seconds": 5.0,
            "checkpoint": TINY,
        },
    ),
    Experiment(
        "slow-connections", connections.slow_connections, {"connections": 400, "seconds": 2.0, "descriptors": 256}
    ),
    Experiment("reindex-killed", suites.reindex_killed),
    Experiment("mixed-up", mixups.mixed_up, {"ways": "server"}),
    Experiment("disk-full", disks.disk_full, {"size_mib": 160, "documents": 200}),
    Experiment("store-away", away.store_away, {"seconds": 6.0, "threads": 4, "store_timeout_seconds": 2}),
    Experiment("any-call", suites.any_call, {"cases": 130}),
    Experiment("filters", suites.filters, {"cases": 240}),
    Experiment("authorisation", suites.authorisation),
    Experiment("soak", soak.soak, {"minutes": 0.1, "window_minutes": 0.03, "checkpoint": TINY}),
    Experiment("backup", backups.backup_under_load, {"documents": 100, "queries": 20}),
]
