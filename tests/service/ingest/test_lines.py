import asyncio

import pytest

from service.ingest.lines import parse_line, read_documents, split_lines
from service.ingest.pipeline import Failure, IncomingDocument
from service.store.base import Document


async def chunks_of(*chunks):
    for chunk in chunks:
        yield chunk


def lines(*chunks, limit=10):
    async def collect():
        return [line async for line in split_lines(chunks_of(*chunks), max_line_bytes=limit)]

    return asyncio.run(collect())


def read(raw, chunk_bytes):
    async def collect():
        chunks = chunks_of(*[raw[start : start + chunk_bytes] for start in range(0, len(raw), chunk_bytes)])
        return [each async for each in read_documents(chunks, max_line_bytes=100, max_text_chars=50)]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], []),
        ([b""], []),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a\nb"], [b"a", b"b"]),
        ([b"a", b"b\nc", b"", b"\n"], [b"ab", b"c"]),
        ([b"\n\na"], [b"", b"", b"a"]),
        ([b"x" * 10 + b"\n"], [b"x" * 10]),
        ([b"x" * 11 + b"\na"], [None, b"a"]),
        ([b"x" * 6, b"x" * 6, b"x\na\n"], [None, b"a"]),
        ([b"x" * 11], [None]),
    ],
)
def test_split_lines(chunks, expected):
    assert lines(*chunks) == expected


def test_split_lines_keeps_no_more_than_a_line_of_an_endless_one():
    class Piece(bytes):
        alive = 0

        def __new__(cls):
            Piece.alive += 1
            return super().__new__(cls, b"x" * 5)

        def __del__(self):
            Piece.alive -= 1

    async def endless():
        for _ in range(1000):
            yield Piece()
            assert Piece.alive <= 4

    async def collect():
        return [line async for line in split_lines(endless(), max_line_bytes=10)]

    assert asyncio.run(collect()) == [None]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_read_documents_does_not_depend_on_how_the_bytes_arrive(chunk_bytes):
    raw = '{"id": "é", "text": "naïve"}\n\n{"id": "b"}\n{"id": "é", "text": "x"}'.encode()

    first, second, third = read(raw, chunk_bytes)

    assert first == IncomingDocument(document=Document(id="é", text="naïve"), line=1, num_bytes=30)
    assert isinstance(second, Failure)
    assert (second.line, second.id) == (3, "b")
    assert isinstance(third, Failure)
    assert (third.line, third.code) == (4, "duplicate_id")


def test_parse_line_prefers_id_over_beirs():
    parsed = parse_line(b'{"_id": "x", "id": "a", "text": "t"}', 1, max_text_chars=50)

    assert isinstance(parsed, Failure)
    assert "_id: unknown field" in parsed.detail


def test_parse_line_too_many_characters():
    parsed = parse_line(b'{"id": "a", "text": "' + b"x" * 51 + b'"}', 7, max_text_chars=50)

    assert isinstance(parsed, Failure)
    assert (parsed.id, parsed.line, parsed.code) == ("a", 7, "invalid_input")
    assert "51 characters" in parsed.detail


def test_parse_line_counts_the_title_with_the_text():
    parsed = parse_line(b'{"id": "a", "text": "x", "title": "' + b"y" * 50 + b'"}', 7, max_text_chars=50)

    assert isinstance(parsed, Failure)
    assert "51 characters" in parsed.detail


def test_parse_line_details_are_bounded():
    raw = ("[" + ",".join(f'"{"x" * 200}"' for _ in range(50)) + "]").encode()
    parsed = parse_line(b'{"id": ' + raw + b', "text": ' + raw + b', "' + b"k" * 5000 + b'": 1}', 1, max_text_chars=50)

    assert isinstance(parsed, Failure)
    assert len(parsed.detail) <= 500
