"""The code blocks of README and docs, cut out and run as a reader would run them, against a service of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
URL = "http://127.0.0.1:8080"


class Block(NamedTuple):
    """A fenced block: the heading above it, its language, what is in it."""

    heading: str
    language: str
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """All fenced blocks in their order; the one of a page without headings is under ''."""
    found, heading = [], ""
    for line in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", text, re.M | re.S):
        heading = line["heading"] or heading
        if line["heading"] is None:
            found.append(Block(heading, line["language"], line["text"]))
    return found


def shell_commands(text: str) -> list[str]:
    """The commands of a shell block, each with its quoted or continued lines, without comments."""
    found, pending = [], ""
    for line in text.splitlines():
        pending += line + "\n"
        if pending.endswith("\\\n") or pending.count("'") % 2:
            continue
        pending = re.sub(r"(^|\s+)#[^'\n]*$", "", pending, flags=re.M).strip()
        found += [pending] if pending else []
        pending = ""
    return found


def words(command: str) -> list[str]:
    """As the shell would split a command."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


@dataclass
class Running:
    """A service, the folder that commands run in, and the file of what was encoded."""

    url: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> Path:
        return self.folder / "seen.jsonl"

    def run(self, command: list[str], text: str) -> str:
        """What a block prints, its service's address put in; it must not call for another one."""
        self.seen.write_text("")
        text = text.replace(URL, self.url)
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **self.environment}
        done = subprocess.run([*command, text], capture_output=True, text=True, env=env, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def encoded(self) -> list[str]:
        return [json.loads(line) for line in self.seen.read_text().splitlines()]


@contextmanager
def running_service(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`tests.recipe_service` with its file in `folder`."""
    environment = environment or {}
    command = [sys.executable, "-m", "tests.recipe_service", str(folder / "seen.jsonl"), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment
    ) as process:
        assert process.stdout is not None
        try:
            yield Running(process.stdout.readline().strip(), folder, environment)
        finally:
            process.terminate()
