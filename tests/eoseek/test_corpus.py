import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from service.encoders.checkpoint import load_checkpoint
from service.encoders.torch_loading import load_encoder
from tests.checkpoints import write_tiny_checkpoint

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed; pip install 'eoseek[corpus]'")
import pyarrow.parquet as pq  # noqa: E402

NUM_DOCUMENTS = 23
DOCUMENTS = [
    {"_id": f"d{number}", "title": "a title" * (number % 2), "text": "word " * (1 + number % 7) + str(number)}
    for number in range(NUM_DOCUMENTS)
]
PARTS_OF_4 = 6
# a process that ends as by a power cut: the word before `main()` says when
KILLED = """
import os, signal, sys
from pathlib import Path
from eoseek.cli import main
from eoseek.progress import EncodingBar
def die_at(owner, name, number):
    call, calls = getattr(owner, name), []
    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    setattr(owner, name, counted)
{die}
main()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    lines = [json.dumps(each) for each in DOCUMENTS]
    path.write_bytes(gzip.compress("\n".join([*lines[:5], "", *lines[5:]]).encode()))
    return path


@pytest.fixture
def encode(eoseek, checkpoint, tmp_path):
    def call(*files, **options):
        options = {"output": tmp_path / "out", "checkpoint": checkpoint, "part_size": 4, "dtype": "float32"} | options
        return eoseek("encode-corpus", *files, *words(options))

    return call


def words(options):
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    return [word for name, value in pairs for word in ([name] if value is True else [name, value])]


def read_vectors(folder):
    """{id: vector} of all parts; an id that is there twice fails."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    ids = [each for table in tables for each in table["id"].to_pylist()]
    assert Counter(ids).most_common(1)[0][1] == 1
    vectors = [each for table in tables for each in table["embedding"].to_pylist()]
    return dict(zip(ids, np.asarray(vectors, dtype=np.float32), strict=True))


def assert_are_the_service_s(vectors, checkpoint, documents=DOCUMENTS):
    contract = load_checkpoint(str(checkpoint)).contract
    encoder = load_encoder(str(checkpoint), dtype="float32", device="cpu")
    assert list(vectors) == [each["_id"] for each in documents]
    for each in documents:
        token_ids = contract.documents([(each["title"], each["text"])]).token_ids
        np.testing.assert_allclose(vectors[each["_id"]], encoder.encode(token_ids)[0], atol=1e-5)


def run_killed(die, *arguments):
    script = KILLED.format(die=die)
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_encode_corpus_killed_while_writing_and_restarted_has_every_vector_once(corpus, checkpoint, encode, tmp_path):
    out = tmp_path / "out"
    options = {"output": out, "checkpoint": checkpoint, "part_size": 4, "dtype": "float32"}
    # the renames are the manifest's and one for each part
    run_killed("die_at(Path, 'replace', 4)", "encode-corpus", corpus, *words(options))
    assert len(list(out.glob("part-*.parquet"))) == 2
    assert len(list(out.glob(".*.tmp"))) == 1
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}

    code, _, err = encode(corpus)

    assert code == 0, err
    assert f"{NUM_DOCUMENTS} documents (8 of them in an earlier run), 0 truncated, {PARTS_OF_4} parts" in err
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert list(out.glob(".*.tmp")) == []
    assert_are_the_service_s(read_vectors(out), checkpoint)


@pytest.mark.integration
@pytest.mark.slow
def test_encode_corpus_by_ray_killed_and_restarted_has_every_vector_once(corpus, checkpoint, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed; pip install 'eoseek[ray]'")
    out = tmp_path / "out"
    options = {"output": out, "checkpoint": checkpoint, "part_size": 4, "dtype": "float32"}
    arguments = ["encode-corpus", str(corpus), *map(str, words(options | {"engine": "ray", "actors": 2}))]
    # the bar is set at the start and after each part
    run_killed("die_at(EncodingBar, 'show', 4)", *arguments)
    assert 1 <= len(list(out.glob("part-*.parquet"))) <= PARTS_OF_4

    done = subprocess.run([sys.executable, "-m", "eoseek", *arguments], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert f"{NUM_DOCUMENTS} documents (" in done.stderr
    assert_are_the_service_s(read_vectors(out), checkpoint)


def test_encode_corpus_without_ray_says_how_to_get_it(corpus, encode, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = encode(corpus, engine="ray")
    assert code == 2
    assert "--engine ray needs: pip install 'eoseek[ray]'" in err


def test_encode_corpus_parquet_of_several_row_groups_is_encoded_as_lines_are(checkpoint, encode, tmp_path):
    columns = {"id": [each["_id"] for each in DOCUMENTS], "year": [1] * NUM_DOCUMENTS}
    columns |= {name: [each[name] for each in DOCUMENTS] for name in ("title", "text")}
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=7)
    code, _, err = encode(path, part_size=5)
    assert code == 0, err
    assert_are_the_service_s(read_vectors(tmp_path / "out"), checkpoint)


def test_encode_corpus_part_that_is_damaged_or_gone_is_encoded_again(corpus, checkpoint, encode, tmp_path):
    encode(corpus)
    (tmp_path / "out" / "part-000001.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "part-000005.parquet").unlink()
    code, _, err = encode(corpus)
    assert code == 0
    assert "(16 of them in an earlier run)" in err  # 4 of part 1 and 3 of part 5 anew
    assert_are_the_service_s(read_vectors(tmp_path / "out"), checkpoint)


def test_encode_corpus_all_bad_lines_are_named_before_anything_is_encoded(encode, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"_id": "a", "text": "x"}\n[1]\n\n{"_id": "b"}\n{"_id": "a", "text": "y"}\n')
    code, _, err = encode(path)
    assert code == 2
    assert "3 lines are no documents" in err
    assert re.findall(r"bad\.jsonl:(\d+): (\w+)", err) == [
        ("2", "invalid_input"), ("4", "invalid_input"), ("5", "duplicate_id"),
    ]  # fmt: skip
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".lock"]


def test_encode_corpus_long_text_is_refused_by_line_and_cut_on_request_without_losing_what_is_done(encode, tmp_path):
    long = {"_id": "long", "text": "x" * 150}
    lines = [json.dumps(each) for each in [*DOCUMENTS[:4], long, *DOCUMENTS[4:]]]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    code, _, err = encode(path)
    assert code == 1
    assert "corpus.jsonl:5: 151 tokens, the limit is 100; shorten it, or" in err

    code, _, err = encode(path, truncate=True)

    assert code == 0
    assert "24 documents (4 of them in an earlier run), 1 truncated" in err
    assert pq.read_table(tmp_path / "out" / "part-000001.parquet")["truncated"].to_pylist() == [True, *[False] * 3]
    code, _, err = encode(path)
    assert code == 2
    assert "was begun with truncate True, and this would be False" in err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "bfloat16"}, "dtype float32, and this would be bfloat16"),
        ({"part_size": 5}, "part_size 4, and this would be 5"),
        ({"max_length": 50}, "max_length 100, and this would be 50"),
    ],
)
def test_encode_corpus_another_recipe_into_the_same_output_is_refused(corpus, encode, changes, told):
    encode(corpus)
    code, _, err = encode(corpus, **changes)
    assert code == 2
    assert told in err
    assert "give another --output" in err


def test_encode_corpus_another_checkpoint_into_the_same_output_is_refused(corpus, encode, checkpoint, tmp_path):
    other = write_tiny_checkpoint(tmp_path / "other", "qwen2")
    encode(corpus)
    code, _, err = encode(corpus, checkpoint=other)
    begun, now = (load_checkpoint(str(each)).fingerprint for each in (checkpoint, other))
    assert code == 2
    assert f"fingerprint {begun}, and this would be {now}" in err


def test_encode_corpus_input_that_was_copied_goes_on_and_a_changed_one_is_refused(corpus, encode, tmp_path):
    encode(corpus)
    copy = tmp_path / "copy.jsonl.gz"
    copy.write_bytes(corpus.read_bytes())
    assert encode(copy)[0] == 0
    copy.write_bytes(gzip.compress(b'{"_id": "z", "text": "another"}\n'))
    code, _, err = encode(copy)
    assert code == 2
    assert re.search(
        r"was begun with copy\.jsonl\.gz \(\d+ bytes, sha256 \w+\), and this is copy\.jsonl\.gz \(49 bytes", err
    )


def test_encode_corpus_folder_in_use_or_of_something_else_is_refused(corpus, encode, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = encode(corpus)
    assert (code, "another run writes here" in err) == (2, True)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, _, err = encode(corpus)
    assert (code, "holds thesis.txt but no manifest.json" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl: no such file"),
        ((os.devnull,), "not a file"),
        ((__file__, "--actors", "2"), "--actors: for --engine ray only"),
    ],
)
def test_encode_corpus_what_cannot_be_is_one_line_and_exit_code_2(eoseek, tmp_path, arguments, told):
    code, _, err = eoseek("encode-corpus", *arguments, "--output", tmp_path / "out")
    assert code == 2
    assert told in err.splitlines()[-1]


def test_encode_corpus_parquet_without_text_names_its_columns(encode, tmp_path):
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": ["a"], "body": ["x"]}), path)
    code, _, err = encode(path)
    assert code == 1
    assert "needs the columns `_id` or `id`, and `text`; it has id, body" in err
