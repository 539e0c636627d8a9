"""What the image's HEALTHCHECK runs: exit code 0 while the service beside it is ready.

The standard library alone, since it is started every ten seconds. Where readiness wants a key that this environment
does not have, an answer is all that can be asked for: better than a container that is never healthy.
"""

import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_TIMEOUT_SECONDS = 4.0


def main() -> int:
    """Ask once, with EOSEEK_API_KEY where it is set; says on stdout what is wrong."""
    port = os.environ.get("EOSEEK_API__PORT") or "8080"
    key = os.environ.get("EOSEEK_API_KEY")
    request = Request(
        f"http://127.0.0.1:{port}/health/ready", headers={"Authorization": f"Bearer {key}"} if key else {}
    )
    try:
        urlopen(request, timeout=_TIMEOUT_SECONDS).close()
    except HTTPError as error:
        with error:
            sys.stdout.write(f"{error}: {error.read(2000).decode('utf-8', 'replace')}\n")
            return 0 if error.code == 401 and not key else 1
    except (OSError, ValueError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
