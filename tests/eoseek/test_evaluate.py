import gzip
import json
import sys

import pytest

from eoseek.evaluation import EvaluationPlan, ServiceSystem, system_name
from eoseek.judging import judged_sets
from service.errors import ConfigurationError
from tests.checkpoints import write_tiny_checkpoint
from training.evaluation.beir import JudgedSet, Query
from training.evaluation.runs import read_run

DOCUMENTS = [
    {"_id": "merge", "title": "heapq.merge", "text": "merge sorted lists"},
    {"_id": "sort", "title": "", "text": "sorted items"},
    {"_id": "q1", "title": "", "text": "merge two sorted lists"},
]
# q1: first, once q1 itself is dropped; q2: second to `sort`, before q1 by id; q3 has no text
QRELS = "q1\tmerge\t1\nq2\tmerge\t1\nq3\tmerge\t1\n"
NDCG = f"{(1 + 0.63093) / 3:.4f}"


@pytest.fixture
def write_set(tmp_path):
    def write(name, *splits):
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, DOCUMENTS)).encode()))
        (folder / "queries.jsonl").write_text(
            '{"_id": "q1", "text": "merge two sorted lists"}\n{"_id": "q2", "text": "sorted items"}\n'
        )
        for split in splits or ["test"]:
            (folder / "qrels" / f"{split}.tsv").write_text(QRELS)
        return folder

    return write


@pytest.fixture
def folder(write_set):
    return write_set("tiny")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


def rows(out):
    """The table's cells by (set, system), without its head."""
    return {tuple(line.split()[:2]): line.split()[2:] for line in out.splitlines()[1:]}


def test_evaluate_service_ingests_drops_the_query_itself_and_writes_its_files(eoseek, url, folder, tmp_path):
    run_file, json_file = tmp_path / "run", tmp_path / "scores.json"
    code, out, err = eoseek(
        "evaluate", "--url", url, "--data", folder, "--ingest", "--run", run_file, "--json", json_file
    )
    assert code == 0
    assert out.splitlines()[0].split()[:8] == [
        "set",
        "system",
        "queries",
        "nDCG@10",
        "MRR@10",
        "R@10",
        "R@100",
        "R@1000",
    ]
    assert rows(out)["tiny", "service"][:6] == ["3", NDCG, "0.5000", "0.6667", "0.6667", "-"]
    assert "mean over 3 judged queries of test; 1 of them have no text and count as 0" in err
    assert run_file.read_text().splitlines()[0].startswith("q1 Q0 merge 1 ")
    written = json.loads(json_file.read_text())
    assert written["per_query"]["q2"]["mrr@10"] == 0.5
    assert written["metrics"]["mrr@10"] == 0.5


def test_evaluate_checkpoints_beside_bm25_on_two_sets_is_one_table_and_files_for_each(
    eoseek, write_set, checkpoint, tmp_path
):
    folders = write_set("one"), write_set("two", "dev")
    code, out, err = eoseek(
        "evaluate", "--data", folders[0], "--data", folders[1], "--checkpoint", checkpoint,
        "--checkpoint", f"again={checkpoint}", "--bm25", "--dtype", "float32", "--output", tmp_path / "out",
        "--json", tmp_path / "all.json",
    )  # fmt: skip
    assert code == 0, err
    systems = ("tiny-llama", "again", "bm25")
    assert list(rows(out)) == [(name, system) for name in ("one", "two") for system in systems]
    # by BM25 q2 finds `sort`, then q1, which is shorter than merge
    assert rows(out)["two", "bm25"][1:6] == ["0.5000", "0.4444", "0.6667", "0.6667", "0.6667"]
    assert rows(out)["one", "tiny-llama"][1:] == rows(out)["one", "again"][1:]
    assert "two, tiny-llama (limit 100 tokens): mean over 3 judged queries of dev" in err
    assert len(list((tmp_path / "out").iterdir())) == 12
    assert set(read_run(tmp_path / "out" / "one.tiny-llama.run")["q1"]) == {"merge", "sort"}
    assert [each["data"] for each in json.loads((tmp_path / "all.json").read_text())] == ["one", "two"] * 3


def test_evaluate_max_length_cuts_and_counts(eoseek, folder, checkpoint):
    _, _, err = eoseek("evaluate", "--data", folder, "--checkpoint", checkpoint, "--max-length", 15)
    # one token a byte: `sorted items` and [EOS] are 13
    assert "(limit 15 tokens)" in err
    assert "1 queries were cut; 2 documents were cut" in err


def test_evaluate_bm25_beside_a_service_whose_url_is_given(eoseek, url, folder):
    code, out, _ = eoseek("evaluate", "--data", folder, "--bm25", "--url", url, "--ingest")
    assert code == 0
    assert set(rows(out)) == {("tiny", "service"), ("tiny", "bm25")}


def test_evaluate_url_in_the_environment_alone_adds_no_service(eoseek, folder, monkeypatch):
    monkeypatch.setenv("EOSEEK_URL", "http://127.0.0.1:9")
    code, out, _ = eoseek("evaluate", "--data", folder, "--bm25")
    assert (code, set(rows(out))) == (0, {("tiny", "bm25")})


def test_evaluate_table_shows_what_was_done_before_a_failure(eoseek, folder, checkpoint, tmp_path):
    code, out, err = eoseek("evaluate", "--data", folder, "--checkpoint", checkpoint, "--checkpoint", tmp_path / "none")
    assert code == 2
    assert set(rows(out)) == {("tiny", "tiny-llama")}
    assert "none" in err


def test_evaluate_compare_of_a_run_with_itself_and_with_another(eoseek, folder, tmp_path):
    eoseek("evaluate", "--data", folder, "--bm25", "--output", tmp_path)
    run, values = tmp_path / "tiny.bm25.run", tmp_path / "tiny.bm25.jsonl"
    code, out, _ = eoseek("evaluate", "--data", folder, "--compare", run, values)
    assert code == 0
    told = dict(line.rsplit("  ", 1) for line in out.splitlines())
    assert {name.strip(): value for name, value in told.items()} == {
        "nDCG@10 of A, tiny.bm25.run": "0.5000",
        "nDCG@10 of B, tiny.bm25.jsonl": "0.5000",
        "difference, A - B": "+0.0000",
        "95 % interval, bootstrap": "+0.0000 to +0.0000",
        "p, paired t-test": "1",
        "p, randomisation": "1",
        "queries": "3",
    }
    (tmp_path / "worse").write_text("q1 Q0 sort 1 1 x\n")
    eoseek("evaluate", "--data", folder, "--compare", run, tmp_path / "worse", "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["difference"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--split", "dev"), "no split 'dev'; there is test"),
        (("--checkpoint", "a/m", "--checkpoint", "b/m"), "2 systems are called m; give --checkpoint NAME=DIRECTORY"),
        (("--bm25", "--collection", "x"), "--collection is where a service"),
        (("--bm25", "--ingest"), "--ingest loads a service"),
        (("--max-length", "8"), "--max-length: for --checkpoint only"),
        (("--checkpoint", "x=a", "--bm25", "--run", "r"), "--run takes the run of one system"),
        (("--compare", "nowhere", "nowhere"), "nowhere: no such file"),
        (("--bm25", "--json", "no/such/folder"), "no/such/folder"),
        (("--checkpoint", "TINY", "--keep", "/dev/null"), "embeddings cannot be kept in /dev/null"),
    ],
)
def test_evaluate_what_cannot_be_is_one_line_and_exit_code_2(eoseek, folder, checkpoint, arguments, reason):
    given = [checkpoint if each == "TINY" else each for each in arguments]
    code, _, err = eoseek("evaluate", "--data", folder, *given)
    assert code == 2
    assert err.splitlines()[-1].startswith("eoseek: ")
    assert reason in err.splitlines()[-1]


def test_evaluate_missing_data_is_exit_code_2(eoseek, url, tmp_path):
    code, _, err = eoseek("evaluate", "--url", url, "--data", tmp_path)
    assert code == 2
    assert "corpus.jsonl" in err


def test_evaluate_without_the_extra_says_how_to_get_it(eoseek, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "Stemmer" else object())
    code, _, err = eoseek("evaluate", "--data", folder, "--bm25")
    assert (code, err) == (2, "eoseek: Stemmer is not installed; this needs: pip install 'eoseek[train]'\n")


def test_service_system_each_query_is_sent_with_its_own_instruction(client, service, tmp_path):
    sent = []
    answer = service._search
    service._search = lambda body: sent.append((body["query"], body.get("instruction"))) or answer(body)
    queries = {
        "a": Query(query_id="a", text="1", instruction="I"),
        "b": Query(query_id="b", text="2"),
        "c": Query(query_id="c", text="3", instruction="I"),
        "d": Query(query_id="d", text="4", instruction=""),
    }
    qrels = {query_id: {"x": 1} for query_id in queries}
    judged = JudgedSet(name="default", folder=tmp_path, split="test", queries=queries, qrels=qrels)
    ServiceSystem(client, instruction="mine").search(judged)
    assert sorted(sent) == [(["1", "3"], "I"), (["2"], "mine"), (["4"], "")]


@pytest.mark.parametrize(("uses_own", "instruction"), [(True, "Find it"), (False, None)])
def test_judged_sets_queries_bring_their_instructions_unless_told_not_to(folder, uses_own, instruction):
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "merge", "instruction": "Find it"}\n')
    plan = EvaluationPlan(uses_bm25=True, uses_own_instructions=uses_own)
    assert judged_sets([folder], None, plan)[0].judged[0].instruction == instruction


@pytest.mark.parametrize(
    ("given", "name"),
    [("runs/best", "best"), ("ORG/model-1", "model-1"), ("ours=runs/best", "ours"), ("a b=c", "a_b")],
)
def test_system_name_is_the_given_one_or_the_last_part(given, name):
    assert system_name(given) == name


def test_plan_sets_of_one_name_are_refused(tmp_path):
    sets = [JudgedSet(name="x", folder=tmp_path, split="test", queries={}, qrels={})] * 2
    with pytest.raises(ConfigurationError, match="2 sets are called x"):
        EvaluationPlan(uses_bm25=True).check(sets)
