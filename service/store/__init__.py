"""The store room: where documents and their embeddings are kept; see `base` for the contract."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the embedded store's child imports this package too, and should start fast
    from collections.abc import Callable

    from service.settings import StoreSettings
    from service.store.base import Store
    from service.store.index_builds import OnBuild


def open_store(
    settings: "StoreSettings",
    *,
    on_event: "Callable[[str], None] | None" = None,
    on_build: "OnBuild | None" = None,
) -> "Store":
    """The store that is configured, not started yet. Only its own client library is imported.

    Args:
        settings: which one, and where.
        on_event: told what becomes of the embedded store's child, see `Supervised`.
        on_build: told what becomes of its index builds, see `IndexBuilds`.
    """
    match settings.kind:
        case "memory":
            from service.store.memory import MemoryStore

            return MemoryStore()
        case "edge":
            from service.store.edge import EdgeStore

            return EdgeStore(
                settings.path,
                timeout_seconds=settings.timeout_seconds,
                index_threshold=settings.index_threshold,
                quantization=settings.quantization,
                on_event=on_event,
                on_build=on_build,
            )
        case "qdrant":
            from service.store.qdrant import QdrantStore

            return QdrantStore(settings)
