import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.errors import ConfigurationError
from tests.checkpoints import SPECIAL_TOKENS, byte_tokenizer, tiny_model, write_tiny_checkpoint
from tests.training.conftest import toy_rows, write_lines
from training.base import open_base
from training.config import TrainingConfig
from training.data.formats import DocumentText
from training.data.teacher import write_teacher_vectors
from training.errors import CheckpointSaveError, TrainingDivergedError
from training.loss import Objective
from training.model import WEIGHTS
from training.run import read_record, train
from training.saving import checkpoints

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _history(run_dir: Path) -> list[dict[str, float]]:
    state = json.loads((checkpoints(run_dir)[-1] / "trainer_state.json").read_text())
    return [each for each in state["log_history"] if "loss" in each]


def _assert_same_state(left: Path, right: Path) -> None:
    for name, tensor in load_file(left / WEIGHTS).items():
        assert torch.equal(tensor, load_file(right / WEIGHTS)[name]), name
    states = [torch.load(each / "optimizer.pt", weights_only=True) for each in (left, right)]
    for index, state in states[0]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, states[1]["state"][index][key]), (index, key)
    assert all(map(torch.equal, states[0]["masters"], states[1]["masters"]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(make_config: MakeConfig, precision: str) -> None:
    config = make_config(
        num_steps=12, optimizer={"learning_rate": 1e-3}, memory={"chunk_tokens": 128, "precision": precision}
    )
    train(config)
    losses = [each["loss"] for each in _history(config.run_dir)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_resumed_equals_uninterrupted_bit_for_bit(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    changes: dict[str, Any] = {
        "num_steps": 6,
        "tuning": {"rank": 4, "dropout": 0.2},
        "memory": {"chunk_tokens": 128, "precision": precision},
    }
    whole, broken = make_config(name="whole", **changes), make_config(name="broken", **changes)
    train(whole)
    _interrupt_at(monkeypatch, calls=4)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    monkeypatch.undo()
    assert [each.name for each in checkpoints(broken.run_dir)] == ["checkpoint-2"]
    train(broken, resume=True)
    _assert_same_state(checkpoints(whole.run_dir)[-1], checkpoints(broken.run_dir)[-1])
    assert [each["loss"] for each in _history(broken.run_dir)] == [each["loss"] for each in _history(whole.run_dir)]


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, *, calls: int) -> None:
    original, seen = Objective.__call__, []

    def interrupted(self: Objective, *args: Any) -> Any:
        seen.append(None)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Objective, "__call__", interrupted)


def test_training_full_tuning_leaves_embeddings_alone(make_config: MakeConfig) -> None:
    config = make_config(num_steps=2, tuning={"method": "full"})
    tuned = load_file(train(config) / WEIGHTS)
    assert "backbone.layers.0.mlp.up_proj.weight" in tuned
    assert not any("embed_tokens" in name for name in tuned)


def test_training_evaluates_and_keeps_the_best(make_config: MakeConfig) -> None:
    config = make_config(
        num_steps=8,
        optimizer={"learning_rate": 1e-3},
        evaluation={"every_steps": 4, "held_out_queries": 8, "corpus_size": 40},
    )
    newest = train(config)
    state = json.loads((newest / "trainer_state.json").read_text())
    scores = [each["eval_ndcg@10"] for each in state["log_history"] if "eval_ndcg@10" in each]
    best = json.loads((config.run_dir / "best" / "scores.json").read_text())
    assert len(scores) == 3
    assert max(scores) == best["scores"]["ndcg@10"] == state["best_metric"]
    assert (config.run_dir / "best" / WEIGHTS).exists()


def test_training_keeps_the_newest_checkpoints_and_a_record(make_config: MakeConfig) -> None:
    config = make_config(num_steps=6)
    train(config)
    assert [each.name for each in checkpoints(config.run_dir)] == ["checkpoint-4", "checkpoint-6"]
    record = read_record(config.run_dir)
    assert record["config"]["num_steps"] == 6
    assert len(record["data"]["toy.jsonl"]) == 64
    assert "torch" in record["versions"]
    assert list((config.run_dir / "runs").rglob("events.out.tfevents.*"))


def test_training_nan_loss_stops_and_keeps_the_last_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objective.__call__

    def diverging(self: Objective, *args: Any) -> Any:
        seen.append(None)
        terms = original(self, *args)
        return terms if len(seen) < 4 else terms | {"loss": terms["loss"] * math.nan}

    seen: list[None] = []
    monkeypatch.setattr(Objective, "__call__", diverging)
    config = make_config(num_steps=6)
    with pytest.raises(TrainingDivergedError, match=r"step 4, set toy: the loss is nan"):
        train(config)
    (kept,) = checkpoints(config.run_dir)
    assert kept.name == "checkpoint-2"
    assert all(tensor.isfinite().all() for tensor in load_file(kept / WEIGHTS).values())


def test_training_full_disk_keeps_the_checkpoint_before(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save

    def save(content: Any, path: Any, **options: Any) -> None:
        if ".checkpoint-4.new" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, path, **options)

    monkeypatch.setattr(torch, "save", save)
    config = make_config(num_steps=6)
    with pytest.raises(CheckpointSaveError, match=r"checkpoint-4 could not be written .*No space left"):
        train(config)
    assert [each.name for each in checkpoints(config.run_dir)] == ["checkpoint-2"]
    assert not list(config.run_dir.glob(".checkpoint-*"))
    monkeypatch.undo()
    assert train(config, resume=True).name == "checkpoint-6"


def test_training_second_start_of_a_run_is_refused(make_config: MakeConfig) -> None:
    train(make_config(num_steps=2))
    with pytest.raises(ConfigurationError, match="holds checkpoint-2: resume that run"):
        train(make_config(num_steps=2))


def test_training_nothing_to_resume_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="holds no checkpoint to resume"):
        train(make_config(), resume=True)


def test_training_resume_with_another_config_is_refused(make_config: MakeConfig) -> None:
    train(make_config(num_steps=2))
    with pytest.raises(ConfigurationError, match="was trained with another seed"):
        train(make_config(num_steps=4, seed=5), resume=True)


def test_training_resume_with_other_data_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(num_steps=2)
    train(config)
    write_lines(tmp_path / "toy.jsonl", toy_rows()[:-1])
    with pytest.raises(ConfigurationError, match=r"toy\.jsonl is not the file"):
        train(config, resume=True)


def test_training_unknown_target_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"tuning\.targets \['wq'\]"):
        train(make_config(tuning={"targets": ["wq"]}))


def test_training_texts_over_the_bases_length_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="texts of 200 tokens are over the 100 of the base"):
        train(make_config(document_length=200))


@pytest.fixture
def distillation(tmp_path: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    rows = toy_rows()
    write_teacher_vectors(
        tmp_path / "teacher",
        teacher="random",
        queries=[row["query"] for row in rows],
        documents=[DocumentText("", text) for row in rows for text in (row["positive"], *row["negatives"])],
        encode_queries=lambda texts: generator.standard_normal((len(texts), 5), dtype=np.float32),
        encode_documents=lambda texts: generator.standard_normal((len(texts), 5), dtype=np.float32),
    )
    return {"vectors": "teacher", "kl_weight": 1.0, "vector_weight": 1.0, "margin_mse_weight": 1.0}


def test_training_distils_vectors_through_an_alignment(make_config: MakeConfig, distillation: dict[str, Any]) -> None:
    config = make_config(num_steps=3, distillation=distillation)
    tuned = load_file(train(config) / WEIGHTS)
    assert tuned["alignment.cross_DK"].shape == (32, 5)
    assert {"kl", "margin_mse", "vector", "info_nce"} <= _history(config.run_dir)[0].keys()


def test_training_resumed_takes_up_its_alignment(make_config: MakeConfig, distillation: dict[str, Any]) -> None:
    whole, broken = (
        make_config(name=name, num_steps=4, distillation=distillation, memory={"precision": "float32"})
        for name in ("whole", "broken")
    )
    train(whole)
    train(broken)
    shutil.rmtree(checkpoints(broken.run_dir)[-1])
    train(broken, resume=True)
    _assert_same_state(checkpoints(whole.run_dir)[-1], checkpoints(broken.run_dir)[-1])


def test_base_without_closing_eos_is_completed(tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "plain")
    byte_tokenizer("$A").save(str(base / "tokenizer.json"))
    checkpoint = open_base(str(base), tmp_path / "run" / "base")
    assert checkpoint.path == tmp_path / "run" / "base"
    assert checkpoint.contract.documents([("", "x")]).token_ids[0][-1] == 2
    assert checkpoint.path.joinpath("model.safetensors").resolve() == base / "model.safetensors"


def test_base_whose_tokenizer_names_no_eos_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", eos_token_id=None).save_pretrained(tmp_path / "plain")
    byte_tokenizer("$A").save(str(tmp_path / "plain" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL_TOKENS["pad_token"]}
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigurationError, match="names an EOS token"):
        open_base(str(tmp_path / "plain"), tmp_path / "run" / "base")


def test_training_set_that_follows_no_teacher_needs_no_vectors_of_it(tmp_path: Path, make_config: MakeConfig) -> None:
    write_teacher_vectors(
        tmp_path / "teacher",
        teacher="of other texts",
        queries=["not in the set"],
        documents=[],
        encode_queries=lambda texts: np.ones((len(texts), 5), dtype=np.float32),
        encode_documents=lambda texts: np.ones((len(texts), 5), dtype=np.float32),
    )
    distillation = {"vectors": "teacher", "kl_weight": 1.0, "vector_weight": 1.0}
    sets = [{"name": "toy", "path": "toy.jsonl", "follows_teacher": False}]
    config = make_config(num_steps=2, sets=sets, distillation=distillation)
    train(config)
    assert "vector" not in _history(config.run_dir)[0]


@pytest.mark.parametrize("name", ["tuned.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_training_resume_from_a_damaged_checkpoint_is_refused(make_config: MakeConfig, name: str, is_cut: bool) -> None:
    file = train(make_config(num_steps=2)) / name
    if is_cut:
        file.write_bytes(file.read_bytes()[:40])
    else:
        file.unlink()
    with pytest.raises(ConfigurationError, match=r"checkpoint-2 cannot be resumed from: .*remove this folder"):
        train(make_config(num_steps=4), resume=True)


@pytest.mark.parametrize("content", ["", "{"])
def test_training_resume_without_the_trainer_s_state_is_refused(make_config: MakeConfig, content: str) -> None:
    (train(make_config(num_steps=2)) / "trainer_state.json").write_text(content)
    with pytest.raises(ConfigurationError, match="checkpoint-2 cannot be resumed from"):
        train(make_config(num_steps=4), resume=True)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": 5, "data": {}}'])
def test_training_resume_of_a_damaged_record_is_refused(make_config: MakeConfig, content: str) -> None:
    config = make_config(num_steps=2)
    train(config)
    (config.run_dir / "run.json").write_text(content)
    with pytest.raises(ConfigurationError, match="is this the directory of a run"):
        train(config, resume=True)


def test_training_resume_in_another_precision_is_refused(make_config: MakeConfig) -> None:
    train(make_config(num_steps=2))
    with pytest.raises(ConfigurationError, match=r"was trained with another memory\.precision"):
        train(make_config(num_steps=4, memory={"precision": "bfloat16"}), resume=True)


def test_training_resume_to_fewer_steps_is_refused(make_config: MakeConfig) -> None:
    train(make_config(num_steps=4))
    with pytest.raises(ConfigurationError, match="checkpoint-4 is beyond num_steps 2"):
        train(make_config(num_steps=2), resume=True)


def test_training_full_disk_at_resume_keeps_the_record(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_steps=2)
    train(config)
    write = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        if "run.json" not in self.name:
            return write(self, text, **options)
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written .*No space left"):
        train(config, resume=True)
    assert read_record(config.run_dir)["config"]["num_steps"] == 2


def test_training_distillation_without_scores_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="distillation has nothing to follow"):
        train(make_config(distillation={"kl_weight": 1.0}))


def test_training_matryoshka_beyond_the_base_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"loss\.matryoshka 32: the base has 32 dimensions"):
        train(make_config(loss={"matryoshka": [32]}))


def test_training_fsdp_in_one_process_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="fsdp shards a model over several processes"):
        train(make_config(fsdp={"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}))
