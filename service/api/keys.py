"""The keys that a service knows: found by their sha256 in constant time, each with a rate of its own."""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import get_args

from service.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from service.settings import ApiKey, Role

_ROLES = get_args(Role)  # each may do what those before it may


class Keyring:
    """All keys of one app; false if there is none."""

    def __init__(self, keys: Sequence[ApiKey], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._due: dict[bytes, float] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, authorization: str | None, role: Role) -> ApiKey:
        """The key of an `Authorization` header, one request of its rate taken.

        Raises:
            UnauthorizedError: no key, or one that is not known.
            ForbiddenError: a key of a role below `role`.
            RateLimitedError: it came more often than it may.
        """
        key = self._find(authorization)
        if _ROLES.index(key.role) < _ROLES.index(role):
            raise ForbiddenError(
                f"This call wants a key of role {role}; the one sent has role {key.role}.",
                challenge=f'error="insufficient_scope", scope="{role}"',
            )
        self._take(key)
        return key

    def _find(self, authorization: str | None) -> ApiKey:
        scheme, _, sent = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not sent.strip():
            raise UnauthorizedError("This call wants a key: send the header Authorization: Bearer KEY.")
        digest = hashlib.sha256(sent.strip().encode()).digest()
        found = None
        for key in self._keys:  # always to the end, so that the time tells nothing
            if hmac.compare_digest(key.key, digest):
                found = key
        if found is None:
            raise UnauthorizedError("The key sent is not known here.", challenge='error="invalid_token"')
        return found

    def _take(self, key: ApiKey) -> None:
        """A leaky bucket that holds what may come within one second, at least one request."""
        if key.requests_per_second is None:
            return
        interval, now = 1 / key.requests_per_second, self._clock()
        due = max(self._due.get(key.key, now), now)
        wait_seconds = due - now - max(0.0, 1 - interval)
        if wait_seconds > 1e-9:  # rounding
            raise RateLimitedError(
                f"This key may send {key.requests_per_second:g} requests a second; wait as Retry-After says.",
                retry_after_seconds=wait_seconds,
            )
        self._due[key.key] = due + interval
