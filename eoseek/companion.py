"""The demo beside a service: a process of its own, so that its work never takes time from the service's event loop."""

import subprocess
import sys

_END_SECONDS = 5.0
# SIGTERM ends it as Ctrl-C does, its progress bar put away; and before it could, while modules load, without a word
_DEMO = "import signal; from eoseek.cli import main; signal.signal(signal.SIGTERM, signal.default_int_handler); main()"


class DemoCompanion:
    """Runs `eoseek demo` while the service is up: started when it is ready, interrupted when it begins to stop."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_interrupted = False

    def start(self, url: str) -> None:
        """Begins to index; returns at once. The progress bar goes to this process's stderr."""
        command = [sys.executable, "-c", _DEMO, "demo", "--url", url]
        # a session of its own: Ctrl-C in a terminal reaches the service only, which interrupts it once
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def interrupt(self) -> None:
        """Makes it send no more; returns at once. Repeating it does nothing."""
        if self._process and not self._is_interrupted:
            self._is_interrupted = True
            self._process.terminate()

    def stop(self) -> int | None:
        """Ends the process if it still runs; returns its exit code, None if there was none."""
        if self._process is None:
            return None
        self.interrupt()
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
