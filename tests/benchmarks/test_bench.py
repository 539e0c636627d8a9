"""`python -m benchmarks.bench`: its texts, its turns and its arithmetic; no engine is measured here."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks.bench.engines import Child, EngineError
from benchmarks.bench.environments import PEERS, InstallError, pins
from benchmarks.bench.goals import goals
from benchmarks.bench.limit import flop_per_token
from benchmarks.bench.report import MARKS, cell, tables, write_page
from benchmarks.bench.runner import Runner, summary, take_turns
from benchmarks.bench.workload import MEAN_TOKENS, QUICK, Sizes, make, read
from benchmarks.bench.works import SPECS, VLLM, WORKS, Bench, as_multiplied


def engine(**load) -> Child:
    child = Child("fake", "none", Path(sys.executable), 1, **load)
    child._command = [sys.executable, "-m", "tests.benchmarks.fake_engine"]
    return child


def medians(**values) -> dict:
    return {"medians": values}


def test_workload_same_seed_is_the_same_and_another_is_not():
    first, second, other = (make(QUICK, num_rounds=2, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_workload_sends_no_text_twice_and_warms_up_with_others():
    made = make(Sizes(), num_rounds=3)
    texts = [text for name in made.sets for text in made.all(name)]
    assert len(set(texts)) == len(texts)


def test_workload_documents_have_the_mean_length_and_rounds_share_the_lengths():
    made = make(Sizes(), num_rounds=3)
    # a word or a full stop is a token, [EOS] one more
    means = [
        sum(len(re.findall(r"\w+|\.", text)) + 1 for text in texts) / len(texts) for texts in made.sets["documents"]
    ]
    assert sum(map(len, made.sets["documents"])) == 256
    assert all(abs(mean - MEAN_TOKENS) < 0.06 * MEAN_TOKENS for mean in means)


def test_workload_written_and_read_is_the_same(tmp_path):
    made = make(QUICK, num_rounds=2, real=[f"real text {number}" for number in range(9)])
    made.write(tmp_path / "workload.json")
    assert read(tmp_path / "workload.json") == made


def test_workload_file_of_something_else_is_refused_with_its_name(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json cannot be read as a workload"):
        read(tmp_path / "other.json")


def test_turns_are_interleaved_and_each_round_begins_with_another():
    turns = []
    take_turns(["a", "b", "c"], 3, lambda name, number: turns.append(f"{name}{number}") or {"x": 1.0})
    assert turns == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]


def test_turns_engine_that_fails_is_not_run_and_the_others_go_on():
    def measure(name, number):
        if name == "broken" and number == 1:
            raise EngineError("it died")
        return {"documents/s": float(number)}

    found = take_turns(["broken", "sound"], 3, measure)
    assert found["broken"] == {"not run": "it died"}
    assert found["sound"]["medians"] == {"documents/s": 1.0}
    assert cell(found["broken"], "documents/s") == "not run"
    assert "- broken: it died" in tables({"documents": found}, [], ["broken", "sound"], [])


def test_summary_pools_latencies_and_keeps_the_lowest_cosine():
    rounds = [{"latencies": [0.001, 0.002], "lowest cosine": 0.9}, {"latencies": [0.003], "lowest cosine": 0.8}]
    assert summary(rounds)["medians"] == {"p50 ms": 2.0, "p99 ms": 3.0, "lowest cosine": 0.8}


def test_child_answers_though_the_engine_prints_and_its_death_has_a_reason():
    child = engine()
    child.start()
    try:
        answer = child.call("encode", texts=["a", "abc"], kind="query", instruction="", one_by_one=True)
        assert (child.versions, len(answer["seconds"])) == ({"fake": "1"}, 2)
        with pytest.raises(EngineError, match="its process ended"):
            child.call("end")
    finally:
        child.stop()


def test_child_that_cannot_load_says_why_in_one_line():
    child = engine(refuses=True)
    try:
        with pytest.raises(EngineError, match=r"^RuntimeError: no such model$"):
            child.start()
    finally:
        child.stop()


def test_flop_of_a_token_by_hand():
    config = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    # query and output 4x4, key and value 4x2, gate, up and down 4x8; two FLOP each, three layers
    assert flop_per_token(config | {"num_hidden_layers": 3}) == 2 * 3 * (16 + 16 + 8 + 8 + 3 * 32)


def test_goals_ratios_limits_and_what_is_missing():
    works = {
        "documents": {
            "eoseek": medians(**{"documents/s": 8.0, "lowest cosine": 0.99}),
            "vllm": medians(**{"documents/s": 4.0}),
            "infinity": {"not run": "no wheel"},
            "limit": medians(**{"GFLOP/s": 100.0}),
        },
        "queries": {"eoseek": medians(**{"queries/s": 10.0}), "vllm": medians(**{"queries/s": 4.0})},
        "instructed": {"eoseek": medians(**{"queries/s": 11.0, "times without": 0.89})},
        "search": {
            "eoseek": medians(**{"p50 ms": 15.0, "encode p50 ms": 10.5, "search p50 ms": 3.0, "total p50 ms": 14.25}),
            "encoder alone": medians(**{"p50 ms": 10.0}),
            "store alone": medians(**{"p50 ms": 3.0}),
        },
        "long": {
            "eoseek": medians(
                **{f"MiB at {tokens} tokens": tokens**2 / 1e6 for tokens in (2000, 4000, 8000)}, **{"documents/s": 3.2}
            ),
            "sentence-transformers bfloat16": medians(**{"documents/s": 2.0}),
        },
        "growth": {"eoseek": medians(**{"1000": 8000.0, "10000": 4000.0})},
    }
    found = {each.name: each for each in goals(works, flop_per_document=1e10)}
    reached = {name: each.reached for name, each in found.items()}
    assert found["documents/s, times vllm"].measured == "2.00x"
    assert found["documents/s, share of the limit"].measured == "0.80x"
    assert [reached[name] for name in ("documents/s, times vllm", "documents/s, share of the limit")] == [True, True]
    assert reached["documents/s, times infinity"] is None
    assert reached["queries/s with an instruction, times those without"] is False
    assert reached["/search p50, one client"] is True
    assert found["/search p50, one client"].measured == (
        "15.0 ms: 10.5 encoding, 3.0 searching, 0.8 around them, 0.8 client and HTTP"
    )
    assert found["long documents, times sentence-transformers bfloat16"].measured == "1.60x"
    assert (
        found["memory of long documents, slope at the long end"].measured
        == "2.00x: 4 MiB at 2000, 16 MiB at 4000, 64 MiB at 8000"
    )
    assert reached["memory of long documents, slope at the long end"] is False
    assert found["documents/s at the largest store, times at the smallest"].measured.startswith("0.999x")
    assert reached["lowest cosine to float32, one text at a time"] is False
    assert reached["warm start to ready"] is None


def test_goals_without_bfloat16_are_held_against_peers_in_float32():
    works = {
        "queries": {name: medians(**{"queries/s": 10.0}) for name in ("eoseek", "infinity")},
        "long": {name: medians(**{"documents/s": 3.0}) for name in ("eoseek", "sentence-transformers")},
    }
    found = {each.name: each.measured for each in goals(works, flop_per_document=1e10)}
    assert found["queries/s over HTTP, times the best peer"] == "1.00x"
    assert found["long documents, times sentence-transformers"] == "1.00x"


def test_specs_bfloat16_that_is_not_multiplied_is_float32_and_no_engine_comes_twice():
    assert as_multiplied(SPECS, "bfloat16") == list(SPECS)
    specs = as_multiplied(SPECS, "float32")
    assert [spec.name for spec in specs] == ["eoseek", "vllm", "infinity", "sentence-transformers"]
    assert [spec.dtype for spec in specs] == ["auto", "float32", "auto", "auto"]
    assert [spec.name for spec in as_multiplied(WORKS["long"].specs, "float32")] == ["eoseek", "sentence-transformers"]


def test_page_gets_the_tables_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_page(page, "| new |")
    assert page.read_text() == f"before\n{MARKS[0]}\n\n| new |\n\n{MARKS[1]}\nafter\n"


@pytest.mark.parametrize("name", PEERS)
def test_environment_pins_every_package_to_one_version(name):
    lines = [line for line in pins(name).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in lines


def test_runner_environment_that_cannot_be_built_is_not_run_and_is_not_tried_twice(monkeypatch, tmp_path):
    tried = []

    def build(environment):
        tried.append(environment)
        raise InstallError("no such wheel")

    monkeypatch.setattr("benchmarks.bench.runner.build", build)
    made = make(QUICK, num_rounds=2)
    bench = Bench(checkpoint=None, workload=made, reference={})
    runner = Runner(bench, threads=1, store=tmp_path, number_format="bfloat16")
    runner.prepare([VLLM])
    found = runner.run(WORKS["single"], [VLLM])
    assert found == {"vllm": {"not run": "no such wheel"}}
    assert tried == ["vllm", "sentence-transformers"]
