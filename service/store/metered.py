"""Any store with its calls timed and its failures counted, so that no caller has to."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from service.errors import EoseekError, NotImplementedHereError
from service.metrics import Metrics
from service.store.base import Store

_OPERATIONS = sorted(
    name
    for name, member in vars(Store).items()
    if inspect.iscoroutinefunction(member) and name not in ("start", "stop")
)


def metered(store: Store, metrics: Metrics) -> Store:
    """`store`, whose calls are observed by operation. Errors that its callers made are no failures of it."""
    return cast(Store, _MeteredStore(store, metrics))


class _MeteredStore:
    """Wraps the operations of the contract; all else is the store's own."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        for operation in _OPERATIONS:
            metrics.count_store_errors(operation, 0)
            setattr(self, operation, _metered(getattr(store, operation), operation, metrics))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _metered(method: Callable[..., Awaitable[Any]], operation: str, metrics: Metrics) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return await method(*args, **options)
        except Exception as error:
            if _is_failure(error):
                metrics.count_store_errors(operation)
            raise
        finally:
            metrics.observe_store_call(operation, time.monotonic() - started)

    return call


def _is_failure(error: Exception) -> bool:
    """Whether the store is at fault: not its caller, nor a call that it is not made for."""
    return not isinstance(error, EoseekError) or (
        error.status >= 500 and not isinstance(error, NotImplementedHereError)
    )
