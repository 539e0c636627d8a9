import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from service.encoders.adapter import merge_adapter
from service.encoders.card import read_card
from service.encoders.checkpoint import load_checkpoint
from service.encoders.probes import PROBES, check_probes, decode_probes
from service.encoders.torch_encoder import TorchEncoder
from service.encoders.torch_loading import load_encoder, load_model
from service.errors import ConfigurationError
from training.config import TrainingConfig
from training.export import average, export, export_adapter, load_tuned_model, slerp, verify
from training.held_out import embed_all
from training.model import build_model, load_tuned
from training.run import train

MakeConfig = Callable[..., TrainingConfig]
_QUICK: dict[str, Any] = {"num_steps": 3, "optimizer": {"learning_rate": 3e-3, "warmup": 0.0}}


@pytest.fixture
def run_dir(make_config: MakeConfig) -> Path:
    config = make_config(**_QUICK)
    train(config)
    return config.run_dir


def _vectors(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    token_ids = load_checkpoint(str(path)).contract.documents([("", text) for text in PROBES], truncate=True).token_ids
    return load_encoder(str(path), dtype="float32", device="cpu").encode(token_ids)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_export_gives_the_vectors_of_training(tmp_path: Path, make_config: MakeConfig, method: str) -> None:
    config = make_config(**_QUICK, tuning={"method": method, "rank": 4})
    newest = train(config)
    export(load_tuned_model(config.run_dir), tmp_path / "out", dtype="float32")
    base = load_checkpoint(config.base)
    model = build_model(base, config, device="cpu").eval()
    load_tuned(model, newest)
    token_ids = base.contract.documents([("", text) for text in PROBES], truncate=True).token_ids
    trained = embed_all(token_ids, model, chunk_tokens=256)
    assert np.abs(trained - _vectors(tmp_path / "out")).max() < 1e-5
    assert np.abs(trained - _vectors(Path(config.base))).max() > 1e-2


def test_export_says_what_it_is(tmp_path: Path, run_dir: Path) -> None:
    export(load_tuned_model(run_dir), tmp_path / "out")
    checkpoint = load_checkpoint(str(tmp_path / "out"))
    assert (checkpoint.name, checkpoint.is_tuned) == ("toy", True)
    assert checkpoint.instructions == {"toy": "Find it"}
    card = json.loads((tmp_path / "out" / "eoseek.json").read_text())
    assert card["training"]["data"].keys() == {"toy.jsonl"}
    assert str(tmp_path) not in json.dumps({**card, "training": {**card["training"], "recipe": None}})


def test_export_records_vectors_that_verify_finds_again(tmp_path: Path, run_dir: Path) -> None:
    export(load_tuned_model(run_dir), tmp_path / "out", dtype="float32")
    recorded = decode_probes(load_checkpoint(str(tmp_path / "out")).probes)
    assert list(recorded) == list(PROBES)
    assert np.abs(np.stack(list(recorded.values())) - _vectors(tmp_path / "out")).max() < 1e-6
    cosines = verify(tmp_path / "out")
    assert cosines["eoseek float32"] > 0.99999
    assert all(cosine > 0.99 for cosine in cosines.values())


@pytest.mark.integration
def test_verify_sentence_transformers_reads_the_same_vectors(tmp_path: Path, run_dir: Path) -> None:
    pytest.importorskip("sentence_transformers")
    export(load_tuned_model(run_dir), tmp_path / "out", dtype="float32")
    cosines = verify(tmp_path / "out", pythons=[sys.executable])
    (name,) = [name for name in cosines if name.startswith("sentence-transformers")]
    assert cosines[name] > 0.9999


def test_verify_without_recorded_vectors_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ConfigurationError, match="records no vectors"):
        verify(tiny_base)


def test_verify_interpreter_that_cannot_read_is_named(tmp_path: Path, run_dir: Path) -> None:
    export(load_tuned_model(run_dir), tmp_path / "out")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"could not read .*: no such module"):
        verify(tmp_path / "out", pythons=[str(broken)])


def test_adapter_of_enough_rank_is_the_tuned_model(tmp_path: Path, run_dir: Path, tiny_base: Path) -> None:
    tuned = load_tuned_model(run_dir)
    kept = export_adapter(tuned, str(tiny_base), tmp_path / "adapter", rank=4)
    merged = load_model(load_checkpoint(str(tiny_base)), dtype=torch.float32, device="cpu", trust_remote_code=False)
    merge_adapter(merged, tmp_path / "adapter")
    assert kept > 0.999
    for name, weight in tuned.model.state_dict().items():
        # the adapter's factors are bfloat16
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=1e-2, atol=2e-3)


def test_adapter_records_the_vectors_of_what_is_merged(tmp_path: Path, run_dir: Path, tiny_base: Path) -> None:
    export_adapter(load_tuned_model(run_dir), str(tiny_base), tmp_path / "adapter", rank=4)
    base = load_checkpoint(str(tiny_base))
    merged = load_model(base, dtype=torch.float32, device="cpu", trust_remote_code=False)
    merge_adapter(merged, tmp_path / "adapter")
    encoder = TorchEncoder(merged, pooling=base.pooling, dimension=base.dimension, row_tokens=1024)
    assert check_probes(encoder, base.contract, read_card(tmp_path / "adapter").probes) > 0.99999


def test_adapter_s_vectors_are_of_rounded_weights_whatever_the_base_s_config_says(
    tmp_path: Path, run_dir: Path, tiny_base: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    weights = {name: each.to(torch.bfloat16) for name, each in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    export_adapter(load_tuned_model(run_dir), str(base), tmp_path / "adapter", rank=4)
    read = load_checkpoint(str(base))
    merged = load_model(read, dtype=torch.bfloat16, device="cpu", trust_remote_code=False).to(torch.bfloat16)
    merge_adapter(merged, tmp_path / "adapter")
    encoder = TorchEncoder(merged.float(), pooling=read.pooling, dimension=read.dimension, row_tokens=1024)
    assert check_probes(encoder, read.contract, read_card(tmp_path / "adapter").probes) > 0.999999


def test_adapter_is_read_by_peft(tmp_path: Path, make_config: MakeConfig, tiny_base: Path) -> None:
    from peft import PeftModel

    config = make_config(**_QUICK, tuning={"method": "full"})
    train(config)
    export_adapter(load_tuned_model(config.run_dir), str(tiny_base), tmp_path / "adapter", rank=8)
    models = [
        load_model(load_checkpoint(str(tiny_base)), dtype=torch.float32, device="cpu", trust_remote_code=False)
        for _ in range(2)
    ]
    merge_adapter(models[0], tmp_path / "adapter")
    by_peft = PeftModel.from_pretrained(models[1], tmp_path / "adapter").merge_and_unload()
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(by_peft.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_training_starts_from_an_adapter(tmp_path: Path, make_config: MakeConfig, run_dir: Path) -> None:
    export(load_tuned_model(run_dir), tmp_path / "merged", dtype="float32")
    config = make_config(tuning={"rank": 4, "alpha": 16, "adapter": str(tmp_path / "adapter")})
    export_adapter(load_tuned_model(run_dir), config.base, tmp_path / "adapter", rank=4)
    base = load_checkpoint(config.base)
    token_ids = base.contract.documents([("", text) for text in PROBES], truncate=True).token_ids
    started = embed_all(token_ids, build_model(base, config, device="cpu").eval(), chunk_tokens=256)
    # the adapter's factors are bfloat16
    assert np.abs(started - _vectors(tmp_path / "merged")).max() < 1e-3
    assert np.abs(started - _vectors(Path(config.base))).max() > 1e-2


def test_training_from_an_adapter_of_another_rank_is_refused(
    tmp_path: Path, make_config: MakeConfig, run_dir: Path
) -> None:
    config = make_config(tuning={"rank": 8, "adapter": str(tmp_path / "adapter")})
    export_adapter(load_tuned_model(run_dir), config.base, tmp_path / "adapter", rank=4)
    with pytest.raises(ConfigurationError, match="another rank than this run's 8"):
        build_model(load_checkpoint(config.base), config, device="cpu")


def test_adapter_of_another_base_is_refused(tmp_path: Path, run_dir: Path, tiny_base: Path) -> None:
    from tests.checkpoints import tiny_model

    export_adapter(load_tuned_model(run_dir), str(tiny_base), tmp_path / "adapter", rank=4)
    with pytest.raises(ConfigurationError, match="fits no weight of this base"):
        merge_adapter(tiny_model("llama", intermediate_size=40), tmp_path / "adapter")


def test_adapter_of_the_base_itself_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(ConfigurationError, match="no linear layer differs"):
        export_adapter(load_tuned_model(tiny_base), str(tiny_base), tmp_path / "adapter", rank=4)


def test_average_is_the_weighted_mean(run_dir: Path, tiny_base: Path) -> None:
    states = [load_tuned_model(each).model.state_dict() for each in (run_dir, tiny_base)]
    mean = average([load_tuned_model(each) for each in (run_dir, tiny_base)], weights=[3, 1]).model.state_dict()
    for name, weight in mean.items():
        torch.testing.assert_close(weight, 0.75 * states[0][name] + 0.25 * states[1][name])


def test_slerp_ends_are_the_checkpoints_and_its_middle_keeps_the_norm(run_dir: Path, tiny_base: Path) -> None:
    name = "layers.0.mlp.up_proj.weight"
    first, second = (load_tuned_model(each).model.state_dict()[name] for each in (run_dir, tiny_base))

    def turned(share: float) -> torch.Tensor:
        return slerp([load_tuned_model(each) for each in (run_dir, tiny_base)], share=share).model.state_dict()[name]

    torch.testing.assert_close(turned(0.0), first)
    torch.testing.assert_close(turned(1.0), second)
    norms = sorted([first.norm().item(), second.norm().item()])
    assert norms[0] * 0.999 < turned(0.5).norm().item() < norms[1] * 1.001


def test_joining_checkpoints_of_different_shape_is_refused(tmp_path: Path, run_dir: Path) -> None:
    from tests.checkpoints import write_tiny_checkpoint

    other = write_tiny_checkpoint(tmp_path / "other", "gemma")
    with pytest.raises(ConfigurationError, match="only tunings of one base"):
        average([load_tuned_model(run_dir), load_tuned_model(other)])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 1.0]])
def test_average_of_nothing_is_refused(tiny_base: Path, weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="must be finite and of a sum above 0"):
        average([load_tuned_model(tiny_base)] * 2, weights=weights)


def test_verify_interpreter_that_is_not_there_is_named(tmp_path: Path, tiny_base: Path) -> None:
    export(load_tuned_model(tiny_base), tmp_path / "out")
    with pytest.raises(ConfigurationError, match="--python /no/python: No such file"):
        verify(tmp_path / "out", pythons=["/no/python"])


def test_adapter_s_share_counts_embeddings_that_it_cannot_hold(tmp_path: Path, run_dir: Path, tiny_base: Path) -> None:
    tuned = load_tuned_model(run_dir)
    assert export_adapter(tuned, str(tiny_base), tmp_path / "whole", rank=4) == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad():
        tuned.model.get_input_embeddings().weight.add_(1.0)
    assert export_adapter(tuned, str(tiny_base), tmp_path / "part", rank=4) < 0.1
