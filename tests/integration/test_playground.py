"""The playground in a real Chromium, against a service with a fake encoder on a real socket.

Needs `pip install 'eoseek[browser]'` and a Chromium: Debian's package, or the one that EOSEEK_TEST_CHROMIUM names.
EOSEEK_TEST_AXE names axe-core's `axe.min.js` (npm package `axe-core`) for the check of accessibility.
"""

import gzip
import json
import os
import shlex
import shutil
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.settings import ApiSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint

pytestmark = pytest.mark.integration
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'eoseek[browser]'")

playwright.expect.set_options(timeout=30_000)  # as all else that waits here
CHROMIUM = os.environ.get("EOSEEK_TEST_CHROMIUM") or shutil.which("chromium")
AXE = os.environ.get("EOSEEK_TEST_AXE")
DOCUMENTS = [
    {
        "id": f"d{number}",
        "text": f"text {number}",
        "metadata": {"year": 2000 + number, "kind": ["odd", "even"][number % 2]},
    }
    for number in range(12)
] + [
    {
        "id": "a/b <i>",
        "title": "<img src=x onerror=alert(1)>",
        "text": "<b>bold</b> & plain",
        "metadata": {"kind": "html"},
    }
]


class Encoder(LocalEncoder):
    """Says that it is away when the test wants that."""

    is_away = False

    def __init__(self):
        super().__init__(FakeEncoder(DIMENSION))

    @property
    def is_ready(self):
        return not self.is_away


@contextmanager
def running(app):
    """The URL of `app`, served from a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def encoder():
    return Encoder()


@pytest.fixture(scope="module")
def service(encoder):
    """A client of a service whose collection `docs` is filled, and whose default collection is empty."""
    settings = Settings(api=ApiSettings(), store=StoreSettings(kind="memory"))
    app = create_app(settings, checkpoint=tiny_checkpoint(), encoder=encoder, store=MemoryStore())
    with running(app) as url, httpx.Client(base_url=url) as http:
        http.put("/collections/docs").raise_for_status()
        http.post("/documents", json={"collection": "docs", "documents": DOCUMENTS}).raise_for_status()
        yield http


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium, or EOSEEK_TEST_CHROMIUM=/path/to/it")
    with playwright.sync_playwright() as driver:
        # its sandbox needs a user other than root, and the page is our own
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page of its own on the service, and what its console said."""

    def __init__(self, context, service):
        self.service = service
        self.page = context.new_page()
        self.console = []
        self.faults = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self, **address):
        self.page.goto(f"/?{urlencode(address)}")
        self.page.wait_for_selector("#health[data-state=ready]")

    def search(self, **options):
        """What the service itself answers."""
        return self.service.post("/search", json=options).raise_for_status().json()["results"]

    def wait_for_results(self, num_results):
        playwright.expect(self.page.locator("#results li[data-id]")).to_have_count(num_results)

    def says(self, selector, text):
        playwright.expect(self.page.locator(selector)).to_contain_text(text)

    def press(self, name):
        self.page.get_by_role("button", name=name).click()

    def shown_ids(self, column="#results"):
        self.page.wait_for_selector(f"{column} ol")
        return self.page.eval_on_selector_all(f"{column} li[data-id]", "items => items.map((item) => item.dataset.id)")

    def text(self, selector):
        return self.page.inner_text(selector)


@pytest.fixture(scope="module")
def context(browser, service):
    return browser.new_context(base_url=str(service.base_url), viewport={"width": 1440, "height": 900})


@contextmanager
def visiting(context, service):
    visit = Visit(context, service)
    yield visit
    visit.page.close()
    assert visit.faults == []


@pytest.fixture
def visit(context, service):
    with visiting(context, service) as visit:
        yield visit


@pytest.fixture
def timed_visit(browser, service):
    """One whose clock is the test's."""
    with browser.new_context(base_url=str(service.base_url)) as context, visiting(context, service) as visit:
        visit.page.clock.install()
        yield visit


def ids(hits):
    return [hit["id"] for hit in hits]


def test_playground_search_shows_what_the_service_answers(visit):
    visit.open(collection="docs")
    visit.page.fill("#query", "text 3")
    visit.page.press("#query", "Enter")

    expected = visit.search(query="text 3", collection="docs")
    assert visit.shown_ids() == ids(expected)
    assert visit.text("#results li:first-child .score").strip().endswith(f"{expected[0]['score']:.3f}")
    for stage in ("Tokenize", "Wait in the queue", "Encode", "Search the store", "In the service"):
        assert stage in visit.text(".timings")


def test_playground_address_holds_the_search_and_back_goes_back(visit):
    condition = json.dumps({"must": [{"key": "kind", "match": {"value": "even"}}]})
    visit.open(q="text 1", collection="docs", top_k=3, filter=condition, instruction="code")
    expected = visit.search(
        query="text 1", collection="docs", top_k=3, filter=json.loads(condition), instruction="code"
    )
    assert visit.shown_ids() == ids(expected)

    visit.page.fill("#query", "text 2")
    visit.page.press("#query", "Enter")
    visit.page.wait_for_url("**/?q=text+2&instruction=code&collection=docs&top_k=3&filter=*")
    visit.page.go_back()

    playwright.expect(visit.page.locator("#query")).to_have_value("text 1")
    visit.page.wait_for_selector("#results:not([aria-busy])")
    assert visit.shown_ids() == ids(expected)


def test_playground_text_of_documents_stays_text(visit):
    visit.open(q="<b>bold</b>", collection="docs", top_k=20)
    item = '#results li[data-id="a/b <i>"]'
    visit.page.wait_for_selector(item)

    assert visit.text(f"{item} .title") == "<img src=x onerror=alert(1)>"
    assert visit.page.query_selector_all("#results img, #results b") == []
    visit.page.click(f"{item} .title")
    assert visit.text("#document-dialog .text") == "<b>bold</b> & plain"
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_url(lambda url: "document=" not in url)


def test_playground_document_opens_from_its_address(visit):
    visit.open(q="text 1", collection="docs", document="a/b <i>")

    visit.page.wait_for_selector("#document-dialog[open]")
    assert visit.text("#document-dialog h2") == "<img src=x onerror=alert(1)>"
    visit.says("#document-dialog pre", '"kind": "html"')


def test_playground_compare_shows_each_move_between_the_instructions(visit):
    visit.open(q="text 5", collection="docs", top_k=13)
    visit.page.check("#compare")
    visit.page.wait_for_selector(".comparison")

    first = ids(visit.search(query="text 5", collection="docs", top_k=13))
    second = ids(visit.search(query="text 5", collection="docs", top_k=13, instruction="code"))
    assert visit.shown_ids(".column:first-child") == first
    assert visit.shown_ids(".column:last-child") == second
    moves = visit.page.eval_on_selector_all(
        ".column:last-child .move .unseen", "nodes => nodes.map((node) => node.textContent)"
    )
    assert moves == [described_move(first.index(each) + 1, second.index(each) + 1) for each in second]
    assert len(visit.page.query_selector_all(".comparison path")) == 13
    visit.says(".results-head", "13 of 13 found by both")


def described_move(before, after):
    if before == after:
        return "same rank in both"
    return f"{'up' if before > after else 'down'} {abs(before - after)}, from rank {before}"


def test_playground_compare_marks_what_only_one_list_has(visit):
    visit.open(q="text 5", collection="docs", top_k=3, compare="Some words of my own")

    first = ids(visit.search(query="text 5", collection="docs", top_k=3))
    second = ids(visit.search(query="text 5", collection="docs", top_k=3, instruction="Some words of my own"))
    visit.page.wait_for_selector(".comparison")
    assert len(visit.page.query_selector_all(".column:first-child .out")) == len(set(first) - set(second))
    assert len(visit.page.query_selector_all(".column:last-child .new")) == len(set(second) - set(first))


def test_playground_filter_builder_and_metadata_narrow_the_results(visit):
    visit.open(q="text 5", collection="docs")
    visit.page.wait_for_selector("#results ol")
    visit.page.click("#filter-details summary")
    visit.page.fill("#filter-key", "year")
    visit.page.select_option("#filter-operator", "at least")
    visit.page.fill("#filter-value", "2008")
    visit.page.press("#filter-value", "Enter")
    visit.wait_for_results(4)
    assert set(visit.shown_ids()) == {"d8", "d9", "d10", "d11"}

    visit.page.click('#results li:first-child button[aria-label^="Filter by kind"]')
    visit.wait_for_results(2)
    chosen = json.loads(visit.page.input_value("#filter-json"))
    assert chosen["must"][0] == {"key": "year", "range": {"gte": 2008}}
    assert chosen["must"][1]["key"] == "kind"

    visit.page.click('#filter-chips button[aria-label="Remove year ≥ 2008"]')
    visit.wait_for_results(6)


BUILT = [
    ("is", "2005", {"must": [{"key": "k", "match": {"value": 2005}}]}),
    ("is", '"2005"', {"must": [{"key": "k", "match": {"value": "2005"}}]}),
    ("is not", "true", {"must_not": [{"key": "k", "match": {"value": True}}]}),
    ("is one of", "a, b", {"must": [{"key": "k", "match": {"any": ["a", "b"]}}]}),
    ("contains the words", "1 b", {"must": [{"key": "k", "match": {"text": "1 b"}}]}),
    ("at most", "2024-05-01", {"must": [{"key": "k", "range": {"lte": "2024-05-01"}}]}),
    ("is present", "", {"must": [{"key": "k", "is_empty": False}]}),
]


def test_playground_filter_builder_writes_what_the_service_takes(visit):
    visit.open(collection="docs")
    visit.page.click("#filter-details summary")
    assert {operator for operator, _, _ in BUILT} | {"at least"} == set(visit.text("#filter-operator").split("\n"))
    for operator, value, condition in BUILT:
        visit.page.fill("#filter-json", "")
        visit.page.fill("#filter-key", "k")
        visit.page.select_option("#filter-operator", operator)
        visit.page.fill("#filter-value", value)
        visit.page.click("#filter-add")

        assert json.loads(visit.page.input_value("#filter-json")) == condition
        visit.search(query="a", collection="docs", filter=condition)


def test_playground_refused_filter_says_why_at_the_field(visit):
    bad = {"must": [{"key": "year", "range": {"above": 1}}]}
    visit.open(q="text", collection="docs", filter=json.dumps(bad))
    visit.page.wait_for_selector("#filter-json[aria-invalid]")
    detail = visit.service.post("/search", json={"query": "a", "filter": bad}).json()["detail"]
    assert visit.text("#filter-error") == detail
    assert visit.page.evaluate("document.activeElement.id") == "filter-json"

    visit.page.fill("#filter-json", '{"must": [')
    visit.page.press("#query", "Enter")
    assert visit.text("#filter-error").startswith("Not JSON: ")


def test_playground_refusal_stands_at_its_field(visit):
    for changes, field, message in [
        ({"collection": "none"}, "collection", "no collection 'none'"),
        ({"top_k": "100000"}, "top-k", "100,000"),
        ({"top_k": "0"}, "top-k", "greater than or equal to 1"),
        ({"top_k": "many"}, "top-k", "A whole number"),
    ]:
        visit.open(**{"q": "a", "collection": "docs"} | changes)
        visit.page.wait_for_selector(f"#{field}[aria-invalid]")
        visit.says(f"#{field}-error", message)


def test_playground_too_long_query_can_be_cut(visit):
    visit.open(q="long " * 40, collection="docs")
    visit.press("Cut it and search")

    assert len(visit.shown_ids()) == 10
    visit.says("#results .notice", "was cut")


def test_playground_empty_states_lead_on(visit):
    visit.open(collection="default")
    visit.says("#results", "default holds no documents yet")
    visit.page.click("#results >> text=Add documents")
    assert visit.text("section:not([hidden]) h1") == "Add documents"

    visit.open(q="text", collection="docs", filter=json.dumps({"must": [{"key": "kind", "match": {"value": "none"}}]}))
    visit.press("Search without the filter")
    assert len(visit.shown_ids()) == 10
    visit.page.fill("#query", " ")
    visit.page.press("#query", "Enter")
    assert visit.text("#query-error") == "Write what you are looking for."


def test_playground_newer_search_ends_the_older_one(visit):
    held, failed = [], []
    visit.open(collection="docs")
    visit.page.route(
        "**/search", lambda route: held.append(route) if "older" in route.request.post_data else route.continue_()
    )
    visit.page.on("requestfailed", lambda request: failed.append(request.post_data))
    for query in ("older", "text 7"):
        visit.page.fill("#query", query)
        with visit.page.expect_request("**/search"):
            visit.page.press("#query", "Enter")

    assert visit.shown_ids() == ids(visit.search(query="text 7", collection="docs"))
    assert len(held) == len(failed) == 1
    assert "older" in failed[0]
    assert "#slow" not in visit.page.content()


def test_playground_slow_search_says_so_and_can_be_stopped(timed_visit):
    timed_visit.open(collection="docs")
    timed_visit.page.route("**/search", lambda route: None)
    timed_visit.page.fill("#query", "text 1")
    with timed_visit.page.expect_request("**/search"):
        timed_visit.page.press("#query", "Enter")
    assert timed_visit.page.query_selector(".skeleton")
    timed_visit.page.clock.fast_forward(2000)
    timed_visit.says("#results", "Still searching")

    timed_visit.press("Stop waiting")
    assert timed_visit.page.get_attribute("#results", "aria-busy") is None
    timed_visit.says("#results", "Search 13 documents in docs")


def test_playground_unreachable_service_is_told_and_tried_again(timed_visit):
    timed_visit.open(collection="docs")
    timed_visit.page.route("**/*", lambda route: route.abort())
    timed_visit.page.fill("#query", "text 1")
    timed_visit.page.press("#query", "Enter")
    timed_visit.says("#results", "The service does not answer")
    timed_visit.page.clock.fast_forward(16_000)
    timed_visit.page.wait_for_selector("#health[data-state=offline]")

    timed_visit.page.unroute("**/*")
    timed_visit.page.clock.fast_forward(4_000)
    timed_visit.page.wait_for_selector("#health[data-state=ready]")
    timed_visit.press("Try again")
    assert len(timed_visit.shown_ids()) == 10


def test_playground_overload_names_the_wait(visit):
    problem = {"title": "Overloaded", "detail": "Full.", "code": "overloaded", "instance": "id-1"}
    visit.open(collection="docs")
    visit.page.route(
        "**/search", lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, body=json.dumps(problem))
    )
    visit.page.fill("#query", "text 1")
    visit.page.press("#query", "Enter")

    visit.says("#results .error", "overloaded · request id-1 · wait 7 seconds")


def test_playground_service_that_starts_later_is_noticed(timed_visit):
    timed_visit.page.route("**/info", lambda route: route.abort())
    timed_visit.page.goto("/?q=text+1&collection=docs")
    timed_visit.says("#notices", "The service does not answer")
    timed_visit.page.wait_for_selector("#health[data-state=ready]")

    timed_visit.page.unroute("**/info")
    timed_visit.page.clock.run_for(4_000)
    timed_visit.wait_for_results(10)


def test_playground_health_names_what_is_away(visit, encoder):
    encoder.is_away = True
    try:
        visit.page.goto("/")
        visit.page.wait_for_selector("#health[data-state=away]")
        assert visit.text("#health") == "Not ready: encoder"
    finally:
        encoder.is_away = False


def test_playground_adds_pasted_lines_and_names_the_bad_ones(visit):
    visit.open(view="add", collection="docs")
    lines = [
        '{"id": "new-1", "text": "one"}',
        "",
        "{broken",
        '{"id": "new-2"}',
        '{"id": "d1", "text": "text 1", "metadata": {"year": 2001, "kind": "even"}}',
    ]
    visit.page.fill("#add-text", "\n".join(lines))
    visit.page.click("#add-form .primary")
    visit.page.wait_for_selector("#add-report table")

    visit.says("#add-report", "1 indexed, 1 unchanged, 2 refused")
    rows = visit.page.eval_on_selector_all(
        "#add-report tbody tr", "rows => rows.map((row) => row.cells[0].textContent)"
    )
    assert rows == ["3", "4"]
    assert visit.service.get("/documents/new-1", params={"collection": "docs"}).json()["text"] == "one"
    visit.service.delete("/documents/new-1", params={"collection": "docs"})


def test_playground_adds_a_packed_file_in_batches_with_progress(visit):
    visit.service.put("/collections/many")
    lines = [json.dumps({"_id": f"n{number}", "text": f"number {number}"}) for number in range(150)]
    sent = []
    visit.open(view="add", collection="many")
    visit.page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    packed = gzip.compress("\n".join([*lines, lines[140]]).encode())
    visit.page.set_input_files("#add-file", {"name": "many.jsonl.gz", "mimeType": "application/gzip", "buffer": packed})
    assert visit.page.is_disabled("#add-text")
    visit.page.click("#add-form .primary")
    visit.page.wait_for_selector("#add-report table")

    assert len(sent) == 3
    visit.says("#add-report", "150 indexed, 1 refused")
    visit.says("#add-report table", "the id of line 141 again")
    visit.page.click("text=Search many")
    visit.says("#results", "Search 150 documents in many")
    visit.service.delete("/collections/many")


def test_playground_adding_waits_for_a_busy_service(timed_visit):
    timed_visit.open(view="add", collection="docs")
    problem = {"title": "Overloaded", "detail": "Full.", "code": "overloaded"}
    timed_visit.page.route(
        "**/documents?*",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, body=json.dumps(problem)),
        times=1,
    )
    timed_visit.page.fill("#add-text", '{"id": "d1", "text": "text 1", "metadata": {"year": 2001, "kind": "even"}}')
    timed_visit.page.click("#add-form .primary")
    timed_visit.page.wait_for_selector("#add-note >> text=going on in 2 seconds")
    timed_visit.page.clock.fast_forward(2100)

    timed_visit.page.wait_for_selector("#add-report .done")
    timed_visit.says("#add-report", "1 unchanged")


ITEMS = {
    '{"id": 1}\n\n{"id": 2}\n': [(1, '{"id": 1}'), (3, '{"id": 2}')],
    '[\n {"id": "],{"},\n\n {"id": "a\\"",\n  "n": 9007199254740993}\n]': [
        (2, '{"id": "],{"}'),
        (4, '{"id": "a\\"",   "n": 9007199254740993}'),
    ],
    '{\n "collection": "documents",\n "documents": [{"id": 1}, \n{"id": [2]}]\n}': [
        (3, '{"id": 1}'),
        (4, '{"id": [2]}'),
    ],
    '{"documents": [{"id": 1}]}': [(1, '{"id": 1}')],
    '{\n "id": 1\n}': [(1, '{  "id": 1 }')],
    '{broken\n{"id": 2}': [(1, "{broken"), (2, '{"id": 2}')],
    "[1, 2": [(1, "1"), (1, "2")],
    "[]": [],
    " \n ": [],
}


def test_playground_reads_documents_with_their_lines(visit):
    visit.open(view="add")
    found = visit.page.evaluate(
        """async (texts) => {
            const { readItems, textChunks } = await import("/web/items.js");
            const itemsOf = async (text) => {
                const found = [];
                for await (const { line, text: item } of readItems(textChunks(text))) found.push([line, item]);
                return found;
            };
            return Promise.all(texts.map(itemsOf));
        }""",
        list(ITEMS),
    )
    assert [[tuple(each) for each in items] for items in found] == list(ITEMS.values())


def test_playground_unreadable_file_is_refused_before_anything_is_sent(visit):
    visit.open(view="add", collection="docs")
    visit.page.set_input_files(
        "#add-file", {"name": "a.jsonl.gz", "mimeType": "application/gzip", "buffer": b"no gzip"}
    )
    visit.page.click("#add-form .primary")

    visit.page.wait_for_selector("#add-file[aria-invalid]")
    visit.says("#add-error", "a.jsonl.gz cannot be read as gzip of UTF-8 text")


def test_playground_creates_and_drops_a_collection_after_a_question(visit):
    visit.open(view="collections")
    visit.page.fill("#create-name", "no spaces!")
    visit.page.press("#create-name", "Enter")
    visit.page.wait_for_selector("#create-name[aria-invalid]")
    visit.says("#create-error", "no spaces!")
    visit.page.fill("#create-name", "short-lived")
    visit.page.press("#create-name", "Enter")
    visit.page.click('[aria-label="Drop short-lived"]')
    assert visit.page.evaluate("document.activeElement.textContent") == "Keep it"
    visit.page.keyboard.press("Enter")
    assert visit.service.get("/collections/short-lived").status_code == 200

    visit.page.click('[aria-label="Drop short-lived"]')
    visit.press("Drop it")
    visit.page.wait_for_selector('[aria-label="Drop short-lived"]', state="detached")
    assert visit.service.get("/collections/short-lived").status_code == 404


def test_playground_search_as_curl_and_python_gives_the_same(visit):
    query = 'it\'s "quoted" \\ ü'
    condition = {"must": [{"key": "kind", "match": {"value": "even"}}]}
    visit.open(q=query, collection="docs", instruction="code", top_k=4, filter=json.dumps(condition))
    visit.press("Copy as curl or Python")
    curl, python = visit.page.eval_on_selector_all(
        "#code-dialog pre", "blocks => blocks.map((block) => block.textContent)"
    )
    expected = ids(visit.search(query=query, collection="docs", instruction="code", top_k=4, filter=condition))

    words = shlex.split(curl)
    assert words[:3] == ["curl", "-s", f"{visit.service.base_url}/search"]
    assert ids(visit.search(**json.loads(words[-1]))) == expected
    printed = []
    exec(compile(python, "snippet", "exec"), {"print": lambda score, name, title: printed.append(name)})
    assert printed == expected


def test_playground_key_is_sent_and_kept_for_the_tab(visit):
    visit.open(collection="docs")
    visit.page.click("#settings summary")
    visit.page.fill("#key", "secret")
    visit.page.press("#key", "Enter")
    visit.page.reload()
    with visit.page.expect_request("**/info") as request:
        visit.page.reload()

    assert request.value.headers["authorization"] == "Bearer secret"
    assert visit.page.evaluate("localStorage.length") == 0


KEY = "docs-only-" + "0123456789" * 3
DOCS_ONLY = json.dumps([{"role": "admin", "key": f"a{KEY}"}, {"role": "read", "key": KEY, "collections": ["docs"]}])


@pytest.fixture
def keyed_visit(browser):
    """One on a service that wants a key; there is one for `docs` alone."""
    settings = Settings(api=ApiSettings(keys=DOCS_ONLY), store=StoreSettings(kind="memory"))
    app = create_app(settings, checkpoint=tiny_checkpoint(), encoder=Encoder(), store=MemoryStore())
    with running(app) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer a{KEY}"}) as http:
        http.put("/collections/docs").raise_for_status()
        http.post("/documents", json={"collection": "docs", "documents": DOCUMENTS}).raise_for_status()
        with browser.new_context(base_url=url) as context, visiting(context, http) as visit:
            yield visit


def test_playground_with_a_key_for_one_collection_searches_that_one(keyed_visit, monkeypatch):
    visit = keyed_visit
    visit.page.clock.install()
    visit.open()
    visit.page.click("#settings summary")  # closed again: it stays so, as nothing asks without a key
    for _ in range(2):  # the second look at the health begins when all that follows from the first is over
        with visit.page.expect_response("**/health/ready"):
            visit.page.clock.run_for(20_000)
    assert visit.page.get_attribute("#settings", "open") is None
    visit.page.click("#settings summary")
    visit.page.fill("#key", KEY)
    visit.page.press("#key", "Enter")
    visit.says("#collection", "docs (13)")
    visit.page.fill("#query", "text 3")
    visit.page.press("#query", "Enter")
    visit.wait_for_results(10)

    visit.press("Copy as curl or Python")
    curl, python = visit.page.eval_on_selector_all(
        "#code-dialog pre", "blocks => blocks.map((block) => block.textContent)"
    )
    assert "Authorization: Bearer $EOSEEK_API_KEY" in shlex.split(curl)
    assert KEY not in curl + python
    monkeypatch.setenv("EOSEEK_API_KEY", KEY)
    printed = []
    exec(compile(python, "snippet", "exec"), {"print": lambda score, name, title: printed.append(name)})
    assert printed == ids(visit.search(query="text 3", collection="docs"))


def test_playground_by_keyboard_alone(visit):
    visit.open(collection="docs")
    focused = "document.activeElement.id || document.activeElement.textContent"
    assert visit.page.evaluate(focused) == "query"
    visit.page.keyboard.type("text 2")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#results ol")
    seen = []
    for _ in range(12):
        visit.page.keyboard.press("Tab")
        seen.append(visit.page.evaluate(focused))
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{seen[-1]} does not show the focus"
        if "title" in visit.page.evaluate("document.activeElement.className"):
            break
    assert seen[:7] == [
        "Search",
        "instruction-a-select",
        "collection",
        "top-k",
        "compare",
        "Filter ",
        "Copy as curl or Python",
    ]
    visit.page.keyboard.press("Enter")
    assert visit.page.is_visible("#document-dialog")
    visit.page.keyboard.press("Escape")
    assert visit.page.evaluate("document.activeElement.className") == "title"


def test_playground_skip_link_comes_first(visit):
    visit.open(view="collections")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to content"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "main"


# what the page is to show, and what is there once it does
ADDRESSES = {
    "start": ({"collection": "docs"}, ".empty"),
    "results": ({"q": "text 1", "collection": "docs"}, "#results ol"),
    "compare": ({"q": "text 1", "collection": "docs", "compare": "code"}, ".comparison"),
    "filter": (
        {"q": "text 1", "collection": "docs", "filter": '{"must": [{"is_empty": {"key": "a"}}]}'},
        "#results ol",
    ),
    "document": ({"collection": "docs", "document": "d1"}, "#document-dialog[open]"),
    "refused": ({"q": "a", "collection": "none"}, "#collection[aria-invalid]"),
    "add": ({"view": "add"}, "#add-text"),
    "collections": ({"view": "collections"}, ".cards"),
}


def test_playground_fits_narrow_and_wide_screens_and_logs_nothing(visit):
    for name, (address, awaited) in ADDRESSES.items():
        visit.open(**address)
        visit.page.wait_for_selector(awaited)
        for width in (360, 1440):
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, name
    # the browser reports the refused search by itself
    assert [line for line in visit.console if "the server responded with a status of 404" not in line] == []


def test_docs_show_every_call_and_make_one_without_another_host(visit):
    hosts = set()
    visit.page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    visit.page.goto("/docs")
    playwright.expect(visit.page.locator(".opblock")).to_have_count(sum(map(len, api(visit)["paths"].values())))
    visit.page.locator(".opblock", has_text="/health/live").click()
    visit.press("Try it out")
    visit.press("Execute")
    visit.says(".live-responses-table", '"status": "live"')
    assert hosts == {urlsplit(str(visit.service.base_url)).netloc}
    assert visit.console + visit.faults == []


def api(visit):
    return visit.service.get("/openapi.json").raise_for_status().json()


@pytest.mark.slow
@pytest.mark.skipif(AXE is None, reason="EOSEEK_TEST_AXE names no axe.min.js; npm install axe-core has one")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_playground_axe_finds_no_serious_violation(visit, width, scheme):
    script = Path(AXE).read_text(encoding="utf-8")
    visit.page.set_viewport_size({"width": width, "height": 800})
    visit.page.emulate_media(color_scheme=scheme)
    for name, (address, awaited) in ADDRESSES.items():
        visit.open(**address)
        visit.page.wait_for_selector(awaited)
        visit.page.evaluate(script)
        found = visit.page.evaluate("axe.run()")
        serious = [
            (name, each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert "color-contrast" in {each["id"] for each in found["passes"]}
