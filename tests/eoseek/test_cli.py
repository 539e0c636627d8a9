import gzip
import json
import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "numpy", "fastapi", "pydantic", "httpx", "ir_measures", "tokenizers", "qdrant_client"}
DOCUMENTS = [
    {"_id": "merge", "title": "heapq.merge", "text": "merge sorted lists\nsecond line"},
    {"_id": "sort", "title": "", "text": "sorted items"},
    {"_id": "q1", "title": "", "text": "merge two sorted lists"},
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "tiny" / "corpus.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, DOCUMENTS)).encode()))
    return path


def test_help_answers_within_a_second_and_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['eoseek', '--help']\nfrom eoseek.cli import main\n"
        f"try: main()\nfinally: print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert "ingest" in done.stdout
    # the machine that runs this may be busy; alone it takes a fifth of a second
    assert time.monotonic() - started < 5


def test_ingest_then_search_finds_the_document(eoseek, url, corpus):
    code, out, err = eoseek("ingest", corpus, "--collection", "tiny", "--url", url)
    assert (code, out) == (0, "")
    assert "collection tiny: 3 read, 3 indexed, 0 unchanged, 0 failed" in err
    assert "documents/s" in err
    code, out, _ = eoseek("search", "merge sorted", "--collection", "tiny", "--url", url, "--top-k", 1)
    assert code == 0
    assert out.splitlines() == ["1  0.2000  merge  heapq.merge", "           merge sorted lists"]


def test_search_json_prints_one_object_a_line(eoseek, url, corpus):
    eoseek("ingest", corpus, "--url", url)
    _, out, _ = eoseek("search", "sorted", "--url", url, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == ["merge", "sort", "q1"]
    assert set(rows[0]) == {"id", "score", "title", "text", "metadata"}


def test_search_control_sequences_of_a_document_do_not_reach_the_terminal(eoseek, url, service):
    service.collections["default"]["a"] = {"id": "a", "title": "\x1b[2J", "text": "\x1b]0;x\x07red"}
    _, out, _ = eoseek("search", "red", "--url", url)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red" in out


def test_search_unknown_collection_is_one_line_and_exit_code_1(eoseek, url):
    expected = (1, "", "eoseek: no collection 'none'; there is: default\n")
    assert eoseek("search", "x", "--collection", "none", "--url", url) == expected


def test_search_empty_query_is_refused_before_it_is_sent(eoseek, url, service):
    code, _, err = eoseek("search", "", "--url", url)
    assert (code, service.requests) == (2, [])
    assert err.startswith("eoseek: the query is empty; write what to look for")


def test_search_that_waits_says_so_and_why(eoseek, url, service):
    service.refusals = [(429, {"Retry-After": "0"}, {"code": "overloaded", "detail": "the queue is full"})]
    code, _, err = eoseek("search", "x", "--url", url)
    assert code == 0
    assert err.splitlines()[0] == "trying again in 0.1 s: the queue is full"


@pytest.mark.parametrize("filter", ["{", "[]", "3", '{"gt": NaN}', '{"a":' * 20_000])
def test_search_filter_that_is_no_json_object_is_exit_code_2(eoseek, filter):
    code, _, err = eoseek("search", "x", "--filter", filter)
    assert code == 2
    assert err.startswith("eoseek: --filter")


def test_search_no_service_says_how_to_start_one(eoseek, service):
    with service.listening() as url:
        pass
    code, _, err = eoseek("search", "x", "--url", url)
    assert code == 1
    assert f"no answer from {url}" in err
    assert "eoseek serve" in err
    assert err.count("\n") == 1


def test_url_from_the_environment(eoseek, url, monkeypatch):
    monkeypatch.setenv("EOSEEK_URL", url)
    assert eoseek("search", "x")[0] == 0


def test_ingest_bad_lines_are_named_with_their_file_and_exit_code_is_1(eoseek, url, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": \n{"id": "c", "text": ""}\n')
    code, _, err = eoseek("ingest", path, "--url", url)
    assert code == 1
    assert f"{path}:2: malformed_input: not JSON" in err
    assert f"{path}:3: invalid_input: text is empty" in err
    assert "3 read, 1 indexed, 0 unchanged, 2 failed" in err


def test_ingest_stdin_and_several_files_add_up(eoseek, url, corpus):
    code, _, err = eoseek("ingest", corpus, "-", "--url", url, stdin=b'{"id": "z", "text": "x"}\n')
    assert code == 0
    assert "4 read, 4 indexed" in err


def test_ingest_missing_file_is_exit_code_2_before_anything_is_sent(eoseek, service, url, corpus):
    code, _, err = eoseek("ingest", corpus, "nowhere.jsonl", "--url", url)
    assert (code, err) == (2, "eoseek: nowhere.jsonl: no such file\n")
    assert service.requests == []


def test_ingest_corrupt_gzip_is_one_line_and_exit_code_1(eoseek, url, tmp_path):
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(b"\x1f\x8b plainly wrong")
    code, _, err = eoseek("ingest", path, "--url", url)
    assert code == 1
    assert f"eoseek: {path}: cannot be read beyond line 0" in err
    assert "Traceback" not in err


def test_ingest_interrupted_run_continues_where_it_stopped(eoseek, service, url, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"id": str(number), "text": "x"}) + "\n" for number in range(40)))
    ok = (200, {}, {"indexed": 10, "unchanged": 0, "failed": [], "truncated": []})
    refusal = (409, {}, {"code": "fingerprint_mismatch", "detail": "other checkpoint"})
    service.scripted = [ok, refusal]
    service.collections["default"]["9"] = {"id": "9"}
    command = ("ingest", path, "--url", url, "--batch", 10, "--concurrency", 1)
    code, _, err = eoseek(*command)
    assert code == 1
    assert "10 read, 10 indexed" in err
    assert "other checkpoint" in err
    service.scripted = []
    code, _, err = eoseek(*command)
    assert code == 0
    assert "40 read (10 of them in an earlier run)" in err
    assert "0" not in service.collections["default"]


def test_ingest_no_resume_starts_over_and_a_finished_file_is_read_again(eoseek, url, corpus):
    eoseek("ingest", corpus, "--url", url)
    _, _, err = eoseek("ingest", corpus, "--url", url)
    assert "3 read, 0 indexed, 3 unchanged" in err
    _, _, err = eoseek("ingest", corpus, "--url", url, "--no-resume")
    assert "3 read, 0 indexed, 3 unchanged" in err


def test_embed_arguments_and_stdin_print_json_lines(eoseek, url):
    _, out, _ = eoseek("embed", "ab", "abc", "--url", url)
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[1] == {"text": "abc", "embedding": [3.0, 0.5], "truncated": False}
    assert eoseek("embed", "--url", url, stdin=b"ab\nabc\n")[1] == out


def test_embed_empty_line_of_stdin_is_named(eoseek, url):
    code, out, err = eoseek("embed", "--url", url, stdin=b"one\n\nthree\n")
    assert (code, out) == (2, "")
    assert "stdin:2: the line is empty" in err


def test_ingest_reasons_reach_the_terminal_without_control_sequences(eoseek, url, service, corpus):
    failure = {"id": "a", "line": 1, "code": "invalid_input", "detail": "\x1b[31mred\x1b]0;title\x07"}
    service.scripted = [(200, {}, {"indexed": 0, "unchanged": 0, "failed": [failure], "truncated": []})]
    _, _, err = eoseek("ingest", corpus, "--url", url)
    assert "[31mred" in err
    assert "\x1b" not in err


def test_ingest_place_that_cannot_be_kept_is_said_once(eoseek, url, corpus, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "state"))
    code, _, err = eoseek("ingest", corpus, "--url", url, "--batch", 1)
    assert code == 0
    assert err.count("its place cannot be kept") == 1


def test_demo_indexes_the_standard_library_and_prints_a_search(eoseek, url, service):
    code, out, err = eoseek("demo", "--url", url)
    assert (code, out) == (0, "")
    assert "heapq.merge" in service.collections["demo"]
    assert f"eoseek search 'merge two sorted lists' --collection demo --url {url}" in err
    assert f"curl -s {url}/search" in err
    num_indexed = len(service.collections["demo"])
    assert err.startswith(f"indexing {num_indexed:,} documents")
    _, _, err = eoseek("demo", "--url", url)
    assert f"0 indexed, {num_indexed:,} unchanged" in err


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("EOSEEK_API__PORT", "many", "EOSEEK_API__PORT='many'"),
        ("EOSEEK_API__PROT", "1", "EOSEEK_API__PROT: there is no such setting"),
        ("EOSEEK_STORE__KIND", "disk", "EOSEEK_STORE__KIND='disk'"),
        ("EOSEEK_API", "{", "api"),
    ],
)
def test_serve_wrong_setting_is_one_line_and_exit_code_2(eoseek, monkeypatch, name, value, place):
    monkeypatch.setenv(name, value)
    code, out, err = eoseek("serve")
    assert (code, out) == (2, "")
    assert place in err
    assert err.count("\n") == 1


def test_serve_begins_with_the_worker_before_its_own_imports(eoseek, monkeypatch, tmp_path):
    begun = []

    def load_early(settings, log_format):
        begun.append((settings.checkpoint, log_format))
        return "the checkpoint"

    monkeypatch.setattr("service.encoders.worker.load_early", load_early)
    monkeypatch.setattr("service.app.run", lambda *_, checkpoint, **__: begun.append(checkpoint) or 0)
    monkeypatch.setenv("EOSEEK_ENCODER__CHECKPOINT", str(tmp_path))
    monkeypatch.setenv("EOSEEK_LOG_FORMAT", "json")
    assert eoseek("serve")[0] == 0
    assert begun == [(str(tmp_path), "json"), "the checkpoint"]


KEY = "key-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("EOSEEK_API__KEYS", f'[{{"role": "reed", "key": "{KEY}"}}]', "EOSEEK_API__KEYS__0__ROLE: "),
        ("EOSEEK_API__KEYS", f'[{{"role": "read", "key": "{KEY[:20]}"}}]', "EOSEEK_API__KEYS__0__KEY: "),
        ("EOSEEK_API__KEYS", f'[{{"role": "read", "key": "{KEY}"}}, {{"role": "admin", "key": "{KEY}"}}]', "same key"),
        ("EOSEEK_API__KEYS", KEY, "EOSEEK_API__KEYS: "),
        ("EOSEEK_API__KEYS__0__KEY", KEY, "EOSEEK_API__KEYS__0__KEY is no setting"),
        ("EOSEEK_API__KEY", KEY, "EOSEEK_API__KEY: there is no such setting"),
        ("EOSEEK_STORE__APIKEY", KEY, "EOSEEK_STORE__APIKEY: there is no such setting"),
        ("EOSEEK_STORE", json.dumps({"token": KEY}), "EOSEEK_STORE__TOKEN: there is no such setting"),
    ],
)
def test_serve_wrong_key_setting_says_what_is_wrong_and_shows_no_key(eoseek, monkeypatch, name, value, place):
    monkeypatch.setenv(name, value)
    code, _, err = eoseek("serve")
    assert code == 2
    assert place in err
    assert KEY[:20] not in err
    assert err.count("\n") == 1


def test_key_by_variable_option_or_file_is_sent(eoseek, url, service, monkeypatch, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    eoseek("search", "x", "--url", url, "--api-key", KEY)
    eoseek("search", "x", "--url", url, "--api-key", f"@{tmp_path / 'key'}")
    monkeypatch.setenv("EOSEEK_API_KEY", KEY)
    eoseek("search", "x", "--url", url)
    assert service.authorizations == [f"Bearer {KEY}"] * 3


def test_key_is_not_shown_by_help_or_errors(eoseek, url, monkeypatch, tmp_path):
    monkeypatch.setenv("EOSEEK_API_KEY", KEY)
    for call in (["search", "--help"], ["search", "x", "--url", url, "--collection", "none"], ["demo", "--url", url]):
        assert KEY not in "".join(map(str, eoseek(*call)))
    monkeypatch.setenv("EOSEEK_API_KEY", f"{KEY} {KEY}")
    code, _, err = eoseek("search", "x", "--url", url)
    assert (code, KEY in err) == (2, False)
    code, _, err = eoseek("search", "x", "--api-key", f"@{tmp_path / 'none'}")
    assert (code, "no such file" in err) == (2, True)


def test_settings_prints_values_in_effect_defaults_commented_out_and_no_key(eoseek, monkeypatch):
    key, other = "k" * 40, "upstream-key"
    monkeypatch.setenv("EOSEEK_API__PORT", "9000")
    monkeypatch.setenv("EOSEEK_API__KEYS", json.dumps([{"role": "read", "key": key, "collections": ["b", "a"]}]))
    monkeypatch.setenv("EOSEEK_STORE__API_KEY", other)
    monkeypatch.setenv("EOSEEK_STORE__GRPC", "0")
    code, out, _ = eoseek("settings")
    lines = out.splitlines()
    assert code == 0
    assert {"EOSEEK_API__PORT=9000", "EOSEEK_STORE__GRPC=false", "EOSEEK_STORE__API_KEY=(hidden)"} <= set(lines)
    assert 'EOSEEK_API__KEYS=[{"role":"read","collections":["a","b"],"key":"(hidden)"}]' in lines
    assert {"# EOSEEK_STORE__KIND=edge", "# EOSEEK_API__REQUEST_TIMEOUT_SECONDS=120"} <= set(lines)
    assert key not in out
    assert other not in out


def test_settings_that_are_wrong_end_with_exit_code_2(eoseek, monkeypatch):
    monkeypatch.setenv("EOSEEK_API__PORT", "70000")
    code, out, err = eoseek("settings")
    assert (code, out) == (2, "")
    assert "EOSEEK_API__PORT='70000'" in err
