"""What is taken for an answer of OpenAI's embeddings call."""

import base64
import json

import numpy as np
import pytest

from service.encoders.upstream import UpstreamFault, read_embeddings


def coded(*values):
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


def row(index, embedding):
    return {"object": "embedding", "index": index, "embedding": embedding}


def read(data, *, used=7, **more):
    body = json.dumps({"data": data, "usage": {"prompt_tokens": used}} | more).encode()
    return read_embeddings(body, num_texts=2, num_tokens=7, dimension=2)


def test_upstream_rows_stand_by_their_index_as_base64_or_numbers():
    embeddings = read([row(1, [0.5, -2]), row(0, coded(3.0, 4.0))])

    assert embeddings.tolist() == [[3.0, 4.0], [0.5, -2.0]]
    assert embeddings.dtype == np.float32


A, B = coded(3.0, 4.0), coded(1.0, 0.0)
SHAPE = "another shape than OpenAI's"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([row(0, A)], "gave 1 embeddings for 2 texts"),
        ([row(0, A), row(1, B), row(2, B)], SHAPE),
        ([row(0, A), row(0, B)], SHAPE),
        ([row(0, A), row(-1, B)], SHAPE),
        ([row(0, A), row("1", B)], SHAPE),
        ([row(0, A), row([1], B)], SHAPE),
        ([row(0, A), row(1, coded(1.0))], "gives 1 dimensions, the checkpoint has 2"),
        ([row(0, A), row(1, [1.0, 2.0, 3.0])], "gives 3 dimensions, the checkpoint has 2"),
        ([row(0, A), row(1, 5.0)], "gives 1 dimensions, the checkpoint has 2"),
        ([row(0, A), row(1, B[:-3])], SHAPE),
        ([row(0, A), row(1, "not base64!")], SHAPE),
        ([row(0, A), row(1, [1.0, "x"])], SHAPE),
        ([row(0, A), row(1, None)], "gives 1 dimensions, the checkpoint has 2"),
        ([row(0, A), {"embedding": B}], SHAPE),
        ([row(0, A), 3], SHAPE),
        (None, SHAPE),
        ("ab", SHAPE),
    ],
)
def test_upstream_answer_of_another_shape_is_wrong(data, words):
    with pytest.raises(UpstreamFault, match=words) as fault:
        read(data)
    assert fault.value.kind == "wrong"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"3", b"[" * 100_000, b'{"data": []}', b"\xff\xfe"])
def test_upstream_body_that_is_no_answer_is_wrong(body):
    with pytest.raises(UpstreamFault, match=SHAPE) as fault:
        read_embeddings(body, num_texts=2, num_tokens=7, dimension=2)
    assert fault.value.kind == "wrong"


@pytest.mark.parametrize("used", [6, 8, None, "7"])
def test_upstream_that_took_other_tokens_than_were_sent_refused_the_texts(used):
    with pytest.raises(UpstreamFault, match="where 7 were sent: it cuts texts, or tokenizes them again") as fault:
        read([row(0, A), row(1, B)], used=used)
    assert fault.value.kind == "refused"


def test_upstream_number_beyond_float32_is_infinite_not_an_error():
    assert read([row(0, A), row(1, [1e300, 1.0])])[1, 0] == np.inf


@pytest.mark.parametrize("number", [10**400])
def test_upstream_number_beyond_everything_is_wrong(number):
    with pytest.raises(UpstreamFault, match=SHAPE):
        read([row(0, A), row(1, [number, 1.0])])
