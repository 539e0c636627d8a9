"""`/embed` and `/v1/embeddings`."""

import base64
import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from service.api.encoding import tokenizing
from service.encoders.prompt import Frame, TokenContract
from tests.fakes import fake_embedding
from tests.service.api.parts import DIMENSION, MAX_LENGTH, byte_tokenizer, tiny_checkpoint

LONG = "x" * MAX_LENGTH


def embed(client, inputs, kind="document", **more):
    response = client.post("/embed", json={"inputs": inputs, "kind": kind, **more})
    assert response.status_code == 200, response.text
    return response.json()


def openai(client, text, **more):
    response = client.post("/v1/embeddings", json={"input": text, "model": "any", **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_embed_answers_in_input_order_with_usage(client):
    answer = embed(client, ["a", "bc"])

    assert answer["embeddings"] == [embed(client, "a")["embeddings"][0], embed(client, "bc")["embeddings"][0]]
    assert (answer["model"], answer["dimensions"], answer["truncated"]) == ("tiny", DIMENSION, [])
    assert answer["usage"] == {"tokens": 5}  # a byte a token and an [EOS] each


@pytest.mark.parametrize(
    ("inputs", "kind", "instruction", "num_chars"),
    [
        (["abc", "de"], "document", None, 5 + 2 * len("doc: ")),
        (["abc", "de"], "query", None, 5 + 2 * len("{instruction}>{query}" + "Find c")),
        (["abc", "de"], "query", "", 5 + 2 * len("{instruction}>{query}")),
        (["abc", "de"], "query", "code", 5 + 2 * len("{instruction}>{query}" + "Find the function")),
        (["a"] * 25, "query", "x" * 479, 12_525),
    ],
)
def test_tokenizing_counts_what_is_put_around_each_text(inputs, kind, instruction, num_chars):
    frame = Frame(query_template="{instruction}>{query}", default_instruction="Find c", document_prefix="doc: ")
    contract = TokenContract(byte_tokenizer(), frame, max_length=1000, eos_ids=[256])
    checkpoint = replace(tiny_checkpoint(), contract=contract)
    work = tokenizing(checkpoint, inputs, kind, instruction=instruction, truncate=False)
    assert work.num_chars == num_chars
    assert work.num_chars >= work.call().num_tokens - len(inputs)  # a byte a token and an [EOS] each


@pytest.mark.parametrize(
    ("inputs", "is_elsewhere"),
    [("x" * 512, False), ("x" * 513, True), (["x", "y"], True)],
    ids=["one short text", "many characters", "several texts, which wait in the tokenizer's pool"],
)
def test_embed_tokenizes_what_may_take_long_off_the_event_loop(make_client, monkeypatch, inputs, is_elsewhere):
    threads = []
    tokenize = TokenContract.documents

    def documents(*args, **options):
        threads.append(threading.current_thread().name)
        return tokenize(*args, **options)

    monkeypatch.setattr(TokenContract, "documents", documents)
    embed(make_client(checkpoint=tiny_checkpoint(max_length=1000)), inputs)
    assert [name.startswith("asyncio_") for name in threads] == [is_elsewhere]


def test_embed_gives_exact_float32(client):
    tokenized = client.app.state.services.checkpoint.contract.documents([("", "a")])

    answer = embed(client, "a")

    assert (
        np.array(answer["embeddings"][0], np.float32).tolist()
        == fake_embedding(tokenized.token_ids[0], DIMENSION).tolist()
    )


def test_embed_base64_is_the_little_endian_float32_of_the_floats(client):
    floats = embed(client, ["a"])["embeddings"][0]
    coded = embed(client, ["a"], encoding_format="base64")["embeddings"][0]

    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.array(floats, np.float32))


def test_embed_floats_have_no_more_digits_than_float32(client):
    answer = client.post("/embed", json={"inputs": "a", "kind": "document"}).text

    assert max(map(len, re.findall(r"\d+\.(\d+)", answer))) < 12  # 17 digits tell float64 apart


def test_embed_dimensions_are_cut_then_normalised(client):
    whole = np.array(embed(client, "a")["embeddings"][0])

    answer = embed(client, "a", dimensions=8)

    assert answer["dimensions"] == 8
    assert answer["embeddings"][0] == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-6)


def test_embed_truncates_only_when_asked_and_says_which(client):
    answer = embed(client, ["a", LONG, "b", LONG + "y"], truncate=True)

    assert answer["truncated"] == [1, 3]
    assert answer["embeddings"][1] == answer["embeddings"][3]
    assert "eoseek_truncated_total 2.0" in client.get("/metrics").text


def test_embed_instruction_goes_on_queries_only(client):
    plain = embed(client, "a", kind="query", instruction="")

    assert plain["embeddings"] == embed(client, "a", kind="query")["embeddings"]  # this checkpoint has no default
    assert plain["embeddings"] != embed(client, "a", kind="query", instruction="Find b")["embeddings"]
    assert plain["embeddings"] == embed(client, "a", kind="document", instruction="Find b")["embeddings"]


def test_embed_takes_the_name_of_an_instruction(client):
    named = embed(client, "a", kind="query", instruction="code")

    assert named["embeddings"] == embed(client, "a", kind="query", instruction="Find the function")["embeddings"]


def test_openai_has_the_shape_of_openai(client):
    answer = openai(client, ["a", "bc"], user="someone")

    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(embed(client, ["a", "bc"])["embeddings"])
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_openai_takes_a_text_tokens_and_token_lists(client):
    (byte_of_a,) = client.app.state.services.checkpoint.contract.documents([("", "a")]).token_ids
    expected = openai(client, "a")["data"]

    assert openai(client, byte_of_a)["data"] == expected
    assert openai(client, byte_of_a[:-1])["data"] == expected  # the [EOS] that is missing is added
    assert openai(client, [byte_of_a])["data"] == expected


def test_openai_base64_and_dimensions(client):
    coded = openai(client, "a", encoding_format="base64", dimensions=4)["data"][0]["embedding"]

    floats = openai(client, "a", dimensions=4)["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.array(floats, np.float32))


def test_openai_queries_take_an_instruction(client):
    answer = openai(client, "a", kind="query", instruction="Find b")

    expected = embed(client, "a", kind="query", instruction="Find b")
    assert answer["data"][0]["embedding"] == expected["embeddings"][0]


@pytest.mark.parametrize(
    ("model", "fields", "kind", "instruction"),
    [
        ("default", {}, "document", None),
        ("default", {"instruction": "Find b"}, "query", "Find b"),
        ("default:query", {}, "query", None),
        ("default:query:code", {}, "query", "code"),
        ("default:query:Find b: now", {}, "query", "Find b: now"),
        ("default:query:", {}, "query", ""),
        ("default:query:code", {"instruction": "Find b"}, "query", "Find b"),
        ("default:query", {"kind": "document"}, "document", None),
        ("my:query-tuned", {}, "document", None),
    ],
)
def test_openai_kind_and_instruction_by_fields_or_by_the_name_of_the_model(
    make_client, model, fields, kind, instruction
):
    contract = TokenContract(byte_tokenizer(), Frame(default_instruction="Find c"), max_length=100, eos_ids=[256])
    client = make_client(checkpoint=replace(tiny_checkpoint(), contract=contract))

    answer = openai(client, "a", **{"model": model, **fields})

    assert answer["data"][0]["embedding"] == embed(client, "a", kind=kind, instruction=instruction)["embeddings"][0]


def test_openai_models_lists_the_checkpoint_with_its_length(client):
    assert client.get("/v1/models").json() == {
        "object": "list",
        "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "eoseek", "max_model_len": MAX_LENGTH}],
    }


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, 257], "token id 257 is outside the vocabulary of 257"),
        ([1, 256, 2, 256], "ends a text exactly once"),
        ([1] * MAX_LENGTH + [256], f"101 tokens, the limit is {MAX_LENGTH}"),
    ],
)
def test_openai_token_ids_outside_the_contract_are_refused(client, ids, words):
    response = client.post("/v1/embeddings", json={"input": [[1, 256], ids], "model": "m"})

    assert response.status_code == 422
    assert "input 1" in response.json()["detail"]
    assert words in response.json()["detail"]


def test_openai_error_is_readable_to_its_clients_wherever_it_comes_from(client):
    refused = client.post("/v1/embeddings", json={"input": LONG, "model": "m"}).json()
    without_v1 = client.post("/embeddings", json={"input": "a", "model": "m"}).json()

    code = "text_too_long"
    assert refused["error"] == {"message": refused["detail"], "type": code, "param": None, "code": code}
    assert "No such path: /embeddings" in without_v1["error"]["message"]
