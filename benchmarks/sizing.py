"""From measured speeds to machines: the arithmetic of docs/capacity.md, line by line, as pure functions.

Each figure is one line that says how it comes about, so that a reader can put in another and see what changes.
"""

import math
from dataclasses import dataclass

COMPONENT_BYTES = {"none": 4.0, "scalar": 1.0, "binary": 1 / 8}
"""Of one dimension in memory, by quantization; the originals are then on disk."""
LINK_BYTES = 4  # an HNSW link: the number of another point
DAY_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be served, and on what; figures are of one machine."""

    documents: float
    queries_per_second: float
    tokens_per_document: float = 300
    bytes_per_document: float = 1500  # of its payload: title, text and metadata
    dimension: int = 576
    quantization: str = "none"
    hnsw_m: int = 16
    memory_factor: float = 1.5  # Qdrant's, for point versions and the segments of an optimization
    replicas: int = 2
    load_days: float = 7
    encoder_tokens_per_second: float = 807
    encoder_queries_per_second: float = 47.3
    utilisation: float = 0.6  # of encoders and processors, so that the rest takes the peaks
    search_ms: float = 5  # of one core, in one shard
    documents_per_shard: float = 100e6
    store_memory_gib: float = 256
    store_memory_share: float = 0.8
    store_cores: int = 32
    store_disk_tib: float = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Machines, and the lines that lead to them."""

    load_encoders: int
    query_encoders: int
    memory_bytes: float
    disk_bytes: float
    stores: int
    lines: tuple[str, ...]


def plan(load: Load) -> Plan:
    """How many machines carry this load.

    Raises:
        ValueError: a figure that is not above zero, or an unknown quantization.
    """
    _check(load)
    tokens = load.documents * load.tokens_per_document
    per_encoder = load.encoder_tokens_per_second * load.load_days * DAY_SECONDS
    load_encoders = math.ceil(tokens / per_encoder)
    query_encoders = math.ceil(load.queries_per_second / (load.encoder_queries_per_second * load.utilisation))

    vector = load.dimension * COMPONENT_BYTES[load.quantization]
    links = 2 * load.hnsw_m * LINK_BYTES
    memory = load.documents * (vector + links) * load.memory_factor * load.replicas
    on_disk = 4 * load.dimension + (vector if load.quantization != "none" else 0.0) + links + load.bytes_per_document
    disk = load.documents * on_disk * load.memory_factor * load.replicas

    shards = math.ceil(load.documents / load.documents_per_shard)
    cores = load.queries_per_second * shards * load.search_ms / 1000 / load.utilisation
    by_memory = math.ceil(memory / (load.store_memory_gib * 2**30 * load.store_memory_share))
    by_disk = math.ceil(disk / (load.store_disk_tib * 2**40))
    by_cores = math.ceil(cores / load.store_cores)
    stores = max(by_memory, by_disk, by_cores, load.replicas)
    lines = (
        f"encoders for the load: {_n(load.documents)} documents x {_n(load.tokens_per_document)} tokens / "
        f"({_n(load.encoder_tokens_per_second)} tokens/s x {_n(load.load_days)} days x {_n(DAY_SECONDS)} s) -> "
        f"{_n(load_encoders)}",
        f"encoders for queries: {_n(load.queries_per_second)}/s / ({_n(load.encoder_queries_per_second)}/s x "
        f"{_n(load.utilisation)}) -> {_n(query_encoders)}",
        f"memory: {_n(load.documents)} x ({load.dimension} x {_n(COMPONENT_BYTES[load.quantization])} B + 2 x "
        f"{load.hnsw_m} x {LINK_BYTES} B of links) x {_n(load.memory_factor)} x {load.replicas} replicas = "
        f"{_size(memory)}",
        f"disk: {_n(load.documents)} x {_n(on_disk)} B (float32, quantized, links, payload) x {_n(load.memory_factor)} "
        f"x {load.replicas} replicas = {_size(disk)}",
        f"cores: {_n(load.queries_per_second)}/s x {_n(shards)} shards x {_n(load.search_ms)} ms / "
        f"{_n(load.utilisation)} = {_n(cores)}",
        f"store machines: the largest of memory / ({_n(load.store_memory_gib)} GiB x {_n(load.store_memory_share)}) -> "
        f"{_n(by_memory)}, disk / {_n(load.store_disk_tib)} TiB -> {_n(by_disk)}, cores / {load.store_cores} -> "
        f"{_n(by_cores)}, replicas -> {load.replicas}",
    )
    return Plan(
        load_encoders=load_encoders,
        query_encoders=query_encoders,
        memory_bytes=memory,
        disk_bytes=disk,
        stores=stores,
        lines=lines,
    )


def table(loads: list[Load]) -> str:
    """One row a load, in Markdown."""
    rows = [
        "| documents | quantization | encoders, load | encoders, queries | memory | disk | store machines |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for load in loads:
        made = plan(load)
        cells = [_n(load.documents), load.quantization, _n(made.load_encoders), _n(made.query_encoders)]
        cells += [_size(made.memory_bytes), _size(made.disk_bytes), _n(made.stores)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _check(load: Load) -> None:
    if load.quantization not in COMPONENT_BYTES:
        raise ValueError(f"quantization {load.quantization!r} is none of {', '.join(COMPONENT_BYTES)}")
    for name, value in vars(load).items():
        if not isinstance(value, str) and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be above 0 and finite")
    for name in ("utilisation", "store_memory_share"):
        if getattr(load, name) > 1:
            raise ValueError(f"{name} is {getattr(load, name)}; it is a share, 1 at most")


def _n(value: float) -> str:
    """Whole numbers with commas, others to three digits."""
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"


def _size(num_bytes: float) -> str:
    """In GB or TB of 10 to the power of 9 or 12, as Qdrant's formula counts."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e12 else f"{num_bytes / 1e12:,.1f} TB"
