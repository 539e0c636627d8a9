"""Who encodes the parts: this process, or actors that Ray Data places, feeds and replaces.

Only a part's description goes to an actor and only its count comes back; documents and vectors go by the files, which
all machines of a cluster must see under the same paths.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eoseek.corpus.documents import Part
from eoseek.corpus.encoder import Job, PartEncoder
from eoseek.lines import UnreadableError
from service.errors import ConfigurationError, EncoderError, EoseekError

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What Ray is asked for: so many actors, each with so many GPUs, which may be a share of one."""

    num_actors: int = 1
    gpus_per_actor: float = 0.0


def encode_here(job: Job, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """Encode parts one after the other in this process. Raises as `PartEncoder`."""
    encoder = PartEncoder(job)
    for part in parts:
        encoder.encode(part, progress=advance)


def encode_by_ray(job: Job, parts: Sequence[Part], advance: Callable[[int], object], *, cluster: Cluster) -> None:
    """Encode parts in Ray's actors: the cluster that RAY_ADDRESS names, else one on this machine for the time being.

    An actor that dies is replaced and its part encoded again.

    Args:
        job: the checkpoint and the output under paths that are good on every machine.
        parts: to be encoded.
        advance: told how many more documents are done, part by part.
        cluster: what to ask for.
    Raises:
        ConfigurationError: Ray is not installed or not reached, or as `PartEncoder`.
        EoseekError: a part failed; the others that were done stay.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the house
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ConfigurationError(f"--engine ray needs: pip install 'eoseek[ray]' ({error})") from error
    num_cpus = job.threads or 1
    _start(num_cpus * cluster.num_actors)
    try:
        for row in _results(job, parts, cluster, num_cpus):
            if row["error"]:
                raise _FAILURES.get(row["kind"], EncoderError)(row["error"])
            advance(row["num_documents"])
    except RayError as error:
        raise EncoderError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _start(num_cpus: int) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # vectors do not pass through its store, which would take a third of the memory by itself
        options |= {"include_dashboard": False, "object_store_memory": 128 * 2**20}
        options |= {"num_cpus": max(num_cpus, os.cpu_count() or 1)}
    try:
        ray.init(address, **options)
    except Exception as error:  # Ray raises bare Exception where its processes are slow to start
        raise ConfigurationError(f"RAY_ADDRESS={address}: Ray did not start or was not reached: {error}") from error


def _results(job: Job, parts: Sequence[Part], cluster: Cluster, num_cpus: int) -> Iterator[Row]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    rows = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
    # one part at a time: a second one waiting at an actor would only be late when another actor is idle
    pool = ray.data.ActorPoolStrategy(size=min(cluster.num_actors, len(parts)), max_tasks_in_flight_per_actor=1)
    done = rows.map_batches(
        PartActor,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=cluster.gpus_per_actor,
    )
    yield from done.iter_rows()


class PartActor:
    """A `PartEncoder` as Ray Data calls it; what fails for a reason of ours comes back as a row, not as a traceback."""

    def __init__(self, job: Job) -> None:
        self._failure: Exception | None = None
        try:
            self._encoder = PartEncoder(job)
        except EoseekError as error:
            self._failure = error

    def __call__(self, batch: dict[str, "np.ndarray[Any, Any]"]) -> dict[str, list[Any]]:
        """Encode the one part of a batch."""
        number, start, stop = (int(batch[name][0]) for name in ("number", "start", "stop"))
        part = Part(number=number, path=str(batch["path"][0]), start=start, stop=stop)
        failure = self._failure
        if failure is None:
            try:
                self._encoder.encode(part)
            except (EoseekError, UnreadableError, OSError) as error:
                failure = error
        kind = "" if failure is None else type(failure).__name__
        return {
            "num_documents": [part.num_documents],
            "kind": [kind],
            "error": [str(failure) if failure is not None else ""],
        }


_FAILURES: dict[str, type[Exception]] = {each.__name__: each for each in (UnreadableError, ConfigurationError)}
