"""The default checkpoint is worth using: it finds functions of the standard library by what they do."""

from collections.abc import Callable

import numpy as np
import pytest

from eoseek.demo import EXAMPLE_QUERY, standard_library_documents
from service.encoders.checkpoint import DEFAULT_NAME
from service.paths import cache_dir
from training.data.formats import DocumentText
from training.encoding import CheckpointEmbedder

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FOUND = {
    EXAMPLE_QUERY: "heapq.merge",
    "greatest common divisor": "math.gcd",
    "find files matching a pattern": "glob.iglob",
    "compile a regular expression": "re.compile",
    "current time in seconds": "time.time",
    "sleep for some seconds": "time.sleep",
    "factorial of a number": "math.factorial",
    "escape HTML special characters": "html.escape",
    "deep copy of an object": "copy.deepcopy",
    "standard deviation of a sample": "statistics.stdev",
}
Search = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def search() -> Search:
    """The three nearest of the demo's functions, whose texts are cut at 128 tokens to save time."""
    if not (cache_dir() / "checkpoints" / DEFAULT_NAME).is_dir():
        pytest.skip("the default checkpoint is not pulled; `make model` fetches it")
    functions = [each for each in standard_library_documents() if each.metadata["kind"] == "function"]
    embedder = CheckpointEmbedder("default", max_length=128)
    embeddings_ND = embedder.documents([DocumentText(each.title, each.text) for each in functions])

    def nearest(query: str) -> list[str]:
        (query_D,) = embedder.queries([query])
        return [functions[index].id for index in np.argsort(-(embeddings_ND @ query_D))[:3]]

    return nearest


@pytest.mark.parametrize(("query", "wanted"), FOUND.items())
def test_demo_finds_a_function_by_what_it_does(search: Search, query: str, wanted: str) -> None:
    assert wanted in search(query)
