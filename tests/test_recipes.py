"""The recipes of docs/clients.md, each run as it stands in a process of its own against a running service."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
QUERY = "Instruct: Find the function that does it\nQuery: merge two sorted lists"
DOCUMENT = "Merge multiple sorted inputs into a single sorted output."
REFUSED = """
import openai
try:
    client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="unused")
    client.embeddings.create(model="default", input="x" * 3000)
except openai.UnprocessableEntityError as error:
    print(error)
"""


def recipes() -> dict[str, str]:
    """The blocks of the page by their headings; a second one under the same heading has a 2 behind it."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for number, text in enumerate(re.findall(r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL), start=1):
            found[heading if number == 1 else f"{heading} {number}"] = text
    return found


RECIPES = recipes()
# what must be installed beside the service
SEARCHES = {
    "OpenAI's SDK": ["openai"],
    "LangChain": ["langchain_openai"],
    "LlamaIndex": ["llama_index"],
    "Haystack": ["haystack"],
    "Our own client": [],
    "Our own client 2": [],
}


@dataclass
class Running:
    """The service's address, and the file of what it encoded."""

    url: str
    seen: Path

    def run(self, command: list[str], text: str) -> str:
        """What a recipe prints, its service's address put in; it must not call for another one."""
        self.seen.write_text("")
        text = text.replace("http://127.0.0.1:8080", self.url)
        env = os.environ | {"PYTHONPATH": str(ROOT), "HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, text], capture_output=True, text=True, env=env, cwd=self.seen.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def encoded(self) -> list[str]:
        return [json.loads(line) for line in self.seen.read_text().splitlines()]


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    seen = tmp_path_factory.mktemp("recipes") / "seen.jsonl"
    command = [sys.executable, "-m", "tests.recipe_service", str(seen)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Running(process.stdout.readline().strip(), seen)
        finally:
            process.terminate()


def run_python(running: Running, text: str, packages: list[str]) -> list[str]:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[clients]'")
    return running.run([sys.executable, "-c"], text).splitlines()


@pytest.mark.parametrize("heading", SEARCHES)
def test_recipe_finds_the_document_by_a_query_with_its_instruction(running, heading):
    assert run_python(running, RECIPES[heading], SEARCHES[heading])[-1] == "heapq.merge"
    encoded = running.encoded()
    assert QUERY in encoded
    if SEARCHES[heading]:  # for our own client the service keeps the documents, and encodes them once
        assert DOCUMENT in encoded


def test_recipe_mteb_judges_the_service_with_the_task_s_prompt(running):
    assert run_python(running, RECIPES["mteb"], ["mteb"])[-1] == "1.0"
    assert sorted(running.encoded()) == ["Greatest Common Divisor.", QUERY, DOCUMENT]


def test_openai_sdk_shows_why_a_text_was_refused(running):
    assert "3001 tokens" in run_python(running, REFUSED, ["openai"])[-1].replace(",", "")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_recipe_curl_answers_an_embedding_of_the_query(running):
    answer = json.loads(running.run(["sh", "-c"], RECIPES["curl"]))
    assert len(answer["data"][0]["embedding"]) == 1024
    assert running.encoded() == [QUERY]


def test_every_recipe_is_run():
    assert set(RECIPES) == {*SEARCHES, "mteb", "curl"}
