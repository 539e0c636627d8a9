import gzip
import io
import json
from pathlib import Path

import httpx
import pytest

from eoseek import lines as lines_of_files
from eoseek.client import Client, EoseekClientError
from eoseek.ingest import Counts, IngestOptions, ingest_lines
from eoseek.lines import Line, UnreadableError, read_lines
from eoseek.resume import ResumeState

OPTIONS = IngestOptions(batch_size=2, concurrency=2)


def lines(*texts: str | bytes) -> list[Line]:
    data = [text.encode() if isinstance(text, str) else text for text in texts]
    return [Line(number, each, number) for number, each in enumerate(data, start=1)]


def document(document_id: str, text: str = "text") -> str:
    return json.dumps({"id": document_id, "text": text})


def run(client, given, options=OPTIONS, start=None):
    failures, marks = [], []
    end = ingest_lines(
        client, given, options, on_failure=lambda *each: failures.append(each), on_progress=marks.append, start=start
    )
    return end, failures, marks


def test_ingest_all_documents_arrive_in_batches(client, service):
    end, failures, _ = run(client, lines(*map(document, "abcde")))
    assert end.counts == Counts(read=5, indexed=5)
    assert (end.line, end.document_id, failures) == (5, "e", [])
    assert sorted(service.collections["default"]) == list("abcde")
    assert [path for _, path, _ in service.requests].count("/documents") == 3


def test_ingest_second_time_everything_is_unchanged(client):
    given = lines(*map(document, "abc"))
    run(client, given)
    assert run(client, given)[0].counts == Counts(read=3, unchanged=3)


def test_ingest_beir_line_byte_order_mark_and_blank_lines_are_understood(client, service):
    given = lines(b'\xef\xbb\xbf{"_id": "a", "title": "T", "text": "x"}\r\n', "\n", "  \n", document("b"))
    assert run(client, given)[0].counts == Counts(read=2, indexed=2)
    assert service.collections["default"]["a"]["title"] == "T"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        (b'{"id": "\xff"}', "not UTF-8 at byte 8"),
        ('{"text": "x"}', "needs `id` or `_id`"),
        ('{"id": 3, "text": "x"}', "needs `id` or `_id`"),
        ("[" * 100_000, "not JSON"),
        ('{"id": "x", "text": ""}', "invalid_input: text is empty"),
    ],
)
def test_ingest_bad_line_is_reported_by_number_and_the_others_arrive(client, bad, reason):
    end, ((number, message),), _ = run(client, lines(document("a"), bad, document("b")))
    assert number == 2
    assert reason in message
    assert end.counts == Counts(read=3, indexed=2, failed=1)


def test_ingest_failures_come_in_line_order(client):
    _, failures, _ = run(client, lines("{", document("a"), '{"id": "b", "text": ""}', document("c"), "["))
    assert [number for number, _ in failures] == [1, 3, 5]


def test_ingest_same_id_again_the_later_line_wins(client, service):
    end, _, _ = run(client, lines(document("a", "first"), document("a", "second"), document("a", "third")))
    assert service.collections["default"]["a"]["text"] == "third"
    assert end.counts == Counts(read=3, indexed=3)


def test_ingest_refused_line_is_reported_with_the_services_reason(client, service):
    failure = {"id": "b", "line": 2, "code": "text_too_long", "detail": "9,000 tokens"}
    service.scripted = [(200, {}, {"indexed": 1, "unchanged": 0, "failed": [failure], "truncated": []})]
    end, failures, _ = run(client, lines(document("a"), document("b")))
    assert failures == [(2, "text_too_long: 9,000 tokens")]
    assert end.counts == Counts(read=2, indexed=1, failed=1)


def test_ingest_truncated_documents_are_counted(client, service):
    service.scripted = [(200, {}, {"indexed": 1, "unchanged": 0, "failed": [], "truncated": ["a"]})]
    end, _, _ = run(client, lines(document("a")), IngestOptions(truncate=True))
    assert end.counts == Counts(read=1, indexed=1, truncated=1)
    assert service.requests[-1][2] == {"truncate": "true"}


def test_ingest_refused_request_raises_and_the_watermark_stands_before_it(client, service):
    refusal = (409, {}, {"code": "fingerprint_mismatch", "detail": "other checkpoint"})
    ok = (200, {}, {"indexed": 2, "unchanged": 0, "failed": [], "truncated": []})
    service.scripted = [ok, refusal]
    marks = []
    with pytest.raises(EoseekClientError, match="other checkpoint"):
        ingest_lines(
            client,
            lines(*map(document, "abcd")),
            IngestOptions(batch_size=2, concurrency=1),
            on_failure=lambda *_: None,
            on_progress=marks.append,
        )
    assert [mark.line for mark in marks] == [2]


def test_ingest_resumed_after_a_break_sends_only_what_was_not_acknowledged(service):
    given = lines(*map(document, "abcdef"))
    one = IngestOptions(batch_size=2, concurrency=1)
    marks = []
    ok = (200, {}, {"indexed": 2, "unchanged": 0, "failed": [], "truncated": []})
    service.scripted = [ok, httpx.ConnectError("killed")]
    with (
        Client(transport=service.transport(), retry_seconds=0) as client,
        pytest.raises(EoseekClientError, match="killed"),
    ):
        ingest_lines(client, given, one, on_failure=lambda *_: None, on_progress=marks.append)
    with Client(transport=service.transport()) as client:
        end, _, _ = run(client, given, one, start=marks[-1])
    assert (end.line, end.counts.read, end.counts.indexed + end.counts.unchanged) == (6, 6, 6)
    assert sorted(service.collections["default"]) == list("cdef")


def test_ingest_window_is_bounded_lines_are_not_read_ahead(client):
    taken = []

    def endless():
        for line in lines(*[document(str(number)) for number in range(100)]):
            taken.append(line.number)
            yield line

    def on_progress(mark):
        assert len(taken) - mark.line <= OPTIONS.batch_size * (OPTIONS.concurrency + 1)

    end = ingest_lines(client, endless(), OPTIONS, on_failure=lambda *_: None, on_progress=on_progress)
    assert end.counts.indexed == 100


def test_read_lines_plain_gzip_and_stdin_give_the_same(tmp_path):
    data = b"one\ntwo\n\nthree"
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    expected = [(1, b"one\n"), (2, b"two\n"), (3, b"\n"), (4, b"three")]
    for path in (plain, packed, None):
        assert [(line.number, line.data) for line in read_lines(path, io.BytesIO(data))] == expected


def test_read_lines_truncated_gzip_what_came_before_is_sent_then_it_raises(client, service, tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress("".join(document(str(number), str(hash(number))) + "\n" for number in range(3000)).encode())
    path.write_bytes(whole[:-2000])
    with pytest.raises(UnreadableError, match=r"cut\.jsonl\.gz: cannot be read beyond line \d+"):
        run(client, read_lines(path, io.BytesIO()))
    assert len(service.collections["default"]) > 100


@pytest.mark.parametrize("content", [b"not gzip", b"\x1f\x8b\x08\x00broken header and data"])
def test_read_lines_file_that_is_no_gzip_is_one_error(tmp_path, content):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="line 0"):
        list(read_lines(path, io.BytesIO()))


def test_read_lines_one_that_is_too_long_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_of_files, "MAX_LINE_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 35 + b"\nshort\n")
    assert [(each.number, len(each.data)) for each in read_lines(path, io.BytesIO())] == [(1, 10), (2, 6)]


DEFAULT = IngestOptions(collection="default")


def saved_state(tmp_path: Path, client):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(document, "abcd")))
    state = ResumeState(path, url=client.url, options=DEFAULT)
    mark, _, _ = run(client, lines(*map(document, "ab")))
    state.save(mark)
    return path, state, mark


def test_resume_state_of_an_untouched_file_continues(tmp_path, client):
    path, _, mark = saved_state(tmp_path, client)
    assert ResumeState(path, url=client.url, options=DEFAULT).load(client) == mark


def test_resume_state_of_other_options_or_content_starts_over(tmp_path, client):
    path, _, _ = saved_state(tmp_path, client)
    for other in (IngestOptions(collection="other"), IngestOptions(collection="default", truncate=True)):
        assert ResumeState(path, url=client.url, options=other).load(client).line == 0
    path.write_text("changed")
    assert ResumeState(path, url=client.url, options=DEFAULT).load(client).line == 0


def test_resume_state_collection_dropped_meanwhile_starts_over(tmp_path, client, service):
    _, state, _ = saved_state(tmp_path, client)
    service.collections["default"].clear()
    assert state.load(client).line == 0


def test_resume_state_cleared_or_damaged_starts_over(tmp_path, client):
    _, state, _ = saved_state(tmp_path, client)
    next((tmp_path / "state").rglob("*.json")).write_text('{"line": 1, "stranger": 2}')
    assert state.load(client).line == 0
    state.clear()
    assert state.load(client).line == 0
