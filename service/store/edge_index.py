"""What an index of a Qdrant Edge shard is here: when one is due, how it is built and how it is searched.

One HNSW graph over one sealed segment; what is written after it was built lies in a segment of its own, which a search
scans. Searches with a filter scan all: without payload indexes a graph loses documents behind those that do not match.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qdrant_edge as edge

_LINKS, _CONSTRUCTION_CANDIDATES = 16, 128
# of a search: recall@10 of 0.99 at 100,000, and still 0.98 when a fifth is gone; ten times as many took it to 0.966
_CANDIDATES, _CANDIDATES_FOR = 192, 100_000
_CANDIDATES_GROWTH = 0.25  # with the fourth root of what is beyond that: 341 at a million
_OVERSAMPLING = 3.0  # quantized candidates for each result, scored again by their originals
_REBUILT_SHARE = 5  # an index is built again when a fifth of the collection has changed since
_MIN_INDEXED_BYTES = 1024  # of vectors; Edge indexes no segment below
_ONE_SEGMENT_KB = 2**31  # a graph for each of several segments costs each search as many times


@dataclass(frozen=True, kw_only=True)
class IndexFigures:
    """How much of a shard its index holds; `num_gone` were deleted or written again since it was built."""

    num_points: int
    num_indexed: int
    num_gone: int

    @property
    def num_outside(self) -> int:
        """Points that searches scan."""
        return self.num_points - (self.num_indexed - self.num_gone)

    def is_due(self, *, threshold: int, dimension: int) -> bool:
        """Whether an index should be built, or built again.

        Args:
            threshold: least number of points outside that is worth it.
            dimension: of the vectors, float32.
        """
        is_indexable = self.num_points * dimension * 4 >= _MIN_INDEXED_BYTES
        is_slow = self.num_outside >= max(threshold, self.num_points / _REBUILT_SHARE)
        # a graph finds less with what is gone of it, however few that are
        is_torn = self.num_indexed > 0 and self.num_gone >= self.num_indexed / _REBUILT_SHARE
        return is_indexable and (is_slow or is_torn)


def figures(shard: edge.EdgeShard, directory: Path) -> IndexFigures:
    """Of an open and flushed shard and its directory."""
    info = shard.info()
    # Edge counts what was indexed once. What is gone of it has a bit set in a file of its segment; a segment that can
    # be written to has no such file
    bits = (each.read_bytes() for each in directory.glob("segments/*/id_tracker.deleted"))
    num_gone = sum(int.from_bytes(each, "little").bit_count() for each in bits) if info.indexed_vectors_count else 0
    return IndexFigures(num_points=info.points_count, num_indexed=info.indexed_vectors_count, num_gone=num_gone)


def build(directory: Path, *, dimension: int, is_quantized: bool, num_threads: int) -> None:
    """Build the index of a shard that nobody else has open. Takes minutes and holds the GIL.

    Args:
        directory: of the shard.
        dimension: of its vectors.
        is_quantized: keep an 8-bit copy of the vectors in memory and the originals on disk.
        num_threads: to build with.
    Raises:
        RuntimeError: Edge cannot, or did not build one.
    """
    # what it configured before would go on to hold where nothing is asked for now
    (directory / "edge_config.json").unlink(missing_ok=True)
    shard = edge.EdgeShard.load(str(directory), _config(dimension, is_quantized, num_threads))
    shard.optimize()
    shard.flush()
    num_indexed = shard.info().indexed_vectors_count
    shard.close()
    if not num_indexed:
        raise RuntimeError("no segment was indexed")


def search_params(options: dict[str, Any], *, num_points: int) -> edge.SearchParams:
    """How to search so many points for `options`, the fields of `SearchOptions`."""
    if options["exact"] or options["filter"] is not None:
        return edge.SearchParams(exact=True, quantization=edge.QuantizationSearchParams(ignore=True))
    candidates = round(_CANDIDATES * max(1.0, num_points / _CANDIDATES_FOR) ** _CANDIDATES_GROWTH)
    return edge.SearchParams(
        hnsw_ef=max(candidates, options["top_k"] + options["offset"]),
        quantization=edge.QuantizationSearchParams(rescore=True, oversampling=_OVERSAMPLING),
    )


def _config(dimension: int, is_quantized: bool, num_threads: int) -> edge.EdgeConfig:
    memory = edge.Memory.Cold if is_quantized else edge.Memory.Cached
    scalar = edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned)
    return edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Dot, memory=memory),
        hnsw_config=edge.HnswIndexConfig(
            m=_LINKS,
            ef_construct=_CONSTRUCTION_CANDIDATES,
            full_scan_threshold=1,
            max_indexing_threads=num_threads,
        ),
        quantization_config=scalar if is_quantized else None,
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=1,
            default_segment_number=1,
            max_segment_size=_ONE_SEGMENT_KB,
            deleted_threshold=0.01,
            vacuum_min_vector_number=1,
        ),
    )
