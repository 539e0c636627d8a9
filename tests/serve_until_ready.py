"""`eoseek serve`, stopped once it is ready: `python -m tests.serve_until_ready serve`; the exit code is the service's.

So a block of a page that starts a service is run as far as its reader sees it work.
"""

import subprocess
import sys


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "eoseek", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            if "is ready on" in line:
                process.terminate()
                break
        process.stderr.read()
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
