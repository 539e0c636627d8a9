"""The demo beside a service: a process of its own, so that its work never takes time from the service's event loop."""

import subprocess
import sys


class DemoCompanion:
    """Starts `eoseek demo` when the service is ready, and ends it with the service."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, url: str) -> None:
        """Begins to index; returns at once. The progress bar goes to this process's stderr."""
        command = [sys.executable, "-m", "eoseek", "demo", "--url", url]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """Ends the process if it still runs."""
        if self._process:
            self._process.terminate()
            self._process.wait()
