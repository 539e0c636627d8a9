"""Every command block of README and of the page for users of the interface, run as it stands.

The service is `tests.recipe_service` on the embedded store, the checkpoint `default` is a tiny one with random weights
in a cache of the test's own, and the recipe is the repository's, made small. So nothing is fetched, and what is shown
works together: what one block writes, the next one reads.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import URL, Block, Running, blocks, read, running_service, shell_commands
from tests.workspace import write_data

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOT_RUN = {
    "make serve": "makes an environment and fetches the default checkpoint",
    "make check": "is this check",
    "eoseek demo": "has run before the searches of the quick start",
    'make test ARGS="tests/service/store -x"': "is this test",
    "bash .ci/run": "is both",
    "eoseek encode-corpus corpus.parquet --output vectors --engine ray --actors 8 --gpus 1": "wants GPUs and Ray",
}
# what a reader has done in between, by the command that it stands before
BEFORE = {
    ". .venv/bin/activate": "eoseek demo",  # `make serve` above it has
    "eoseek restore saved.zip": 'export EOSEEK_STORE__PATH="$PWD/restored"',
    "eoseek backup saved.zip": "eoseek reindex papers rollback\neoseek reindex papers abort",
    # the section on training makes this checkpoint
    "eoseek evaluate --data scifact --split test --ingest --run scifact.trec --json scifact.json": (
        "mkdir checkpoints\ncp -r models/next checkpoints/mine"
    ),
}
# shown for the error that comes of it
REFUSED = "-H 'X-Request-Id: try-1'"
PAGES = ["README.md", "docs/api.md"]


def shell_blocks() -> list[tuple[str, int, Block]]:
    return [
        (page, number, block)
        for page in PAGES
        for number, block in enumerate(blocks(read(page)), start=1)
        if block.language == "sh"
    ]


def write_programs(folder: Path) -> None:
    """`eoseek`, `python` and `curl` on the path, and an environment to activate.

    `eoseek serve` ends once it is ready; an answer that is an error is one to the shell as well.
    """
    bin = folder / ".venv" / "bin"
    bin.mkdir(parents=True)
    (bin / "activate").write_text(f"PATH={bin}:$PATH\n")
    (bin / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin / "eoseek").write_text(
        '#!/bin/sh\nif [ "$1" = serve ]; then exec python -m tests.serve_until_ready "$@"; fi\n'
        'exec python -m eoseek "$@"\n'
    )
    (bin / "curl").write_text(f'#!/bin/sh\nexec {shutil.which("curl")} --fail-with-body "$@"\n')
    for program in bin.iterdir():
        program.chmod(0o755)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder = tmp_path_factory.mktemp("readme")
    write_programs(folder)
    write_data(folder)
    environment = {
        "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing is fetched
        "OMP_NUM_THREADS": "1",
        "EOSEEK_ENCODER__THREADS": "1",
    }
    with running_service(folder, str(folder / "served"), environment=environment) as service:
        service.environment |= {
            "EOSEEK_URL": service.url,
            "EOSEEK_API__PORT": "0",
            "EOSEEK_STORE__PATH": str(folder / "store"),
        }
        yield service


def script(block: Block, folder: Path) -> str:
    """What is run of a block; `...` stands for a key of the reader's own."""
    lines = ["set -e"]
    for command in shell_commands(block.text):
        lines += [BEFORE[command]] if command in BEFORE else []
        refused = " && exit 1 || [ $? = 22 ]" if REFUSED in command else ""
        lines += [command + refused] if command not in NOT_RUN else []
    keys = iter("abcdefgh")
    text = re.sub(r'"\.\.\."', lambda _: f'"{next(keys) * 32}"', "\n".join(lines))
    return text.replace("/models/next", f"{folder}/models/next")


@pytest.mark.parametrize(
    ("page", "number", "block"), shell_blocks(), ids=[f"{page}-{number}" for page, number, _ in shell_blocks()]
)
def test_block_runs_as_it_stands(running, page, number, block):
    running.run(["sh", "-c"], script(block, running.folder))


def documents_in(text: str) -> list[object]:
    """The JSON documents that stand one behind the other."""
    found, rest = [], text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].lstrip()
    return found


def shape(value: object) -> object:
    """An answer without what differs from run to run: numbers stand for their type, but for counts."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, float) else value


@pytest.mark.parametrize(("page", "first"), [("README.md", 0), ("docs/api.md", -2)])
def test_answers_are_those_of_a_service(running, page, first):
    shown_calls, shown = blocks(read(page))[first:][:2]
    curl = f"curl -s -X DELETE {URL}/documents"
    running.run(["sh", "-c"], f"{curl}/heapq.merge; {curl}/math.gcd || true")  # as at the beginning
    given = running.run(["sh", "-c"], script(shown_calls, running.folder))
    assert [shape(each) for each in documents_in(given)] == [shape(each) for each in documents_in(shown.text)]


def test_filters_of_the_page_find_and_delete_what_they_say(running):
    calls, _, filters = [each for each in blocks(read("docs/api.md")) if each.language == "sh"][:3]
    running.run(["sh", "-c"], script(calls, running.folder))
    found, deleted = documents_in(running.run(["sh", "-c"], script(filters, running.folder)))
    assert [each["id"] for each in found["results"]] == ["1"]
    assert deleted == {"deleted": 0}


def test_readme_python_block_finds_what_it_indexed(running):
    (block,) = [each for each in blocks(read("README.md")) if each.language == "python"]
    assert "Cats sleep a lot." in running.run([sys.executable, "-c"], block.text)


def test_what_is_not_run_is_there_and_nothing_else_is_left_out():
    commands = [command for _, _, block in shell_blocks() for command in shell_commands(block.text)]
    assert [each for each in (*NOT_RUN, *BEFORE) if each not in commands] == []
    languages = {block.language for page in PAGES for block in blocks(read(page))}
    assert languages <= {"sh", "python", "json", "yaml", ""}
