"""The recipes of docs/clients.md, each run as it stands in a process of its own against a running service."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.pages import Running, blocks, read, running_service

pytestmark = pytest.mark.integration

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
    for heading, _, text in blocks(read("docs/clients.md")):
        found[f"{heading} 2" if heading in found else heading] = text
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


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    with running_service(
        tmp_path_factory.mktemp("recipes"), environment={"HAYSTACK_TELEMETRY_ENABLED": "False"}
    ) as service:
        yield service


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
