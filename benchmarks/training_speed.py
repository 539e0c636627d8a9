"""Pairs/s and peak memory of a training step of ours beside sentence-transformers, on real training texts.

    python -m benchmarks.training_speed [--data FILE] [--pairs 64] [--steps 3] [--rounds 3] [--json FILE]

Both tune the same checkpoint on the same pairs with cached gradients: ours by `cached_step` on the packed forward, once
computing every forward twice and once keeping activations as the default recipe does; theirs by
CachedMultipleNegativesRankingLoss. Each engine runs in a process of its own, so peak memory is its own, and engines
take turns. Tokenizing and the optimizer's step count. Both are plain loops: SentenceTransformerTrainer needs the
`datasets` package. Step 1 starts from equal weights, adapters included, so loss and gradient norm tell whether both
compute the same thing; theirs scores in bfloat16, ours in float32.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.running import DATA, write_json

if TYPE_CHECKING:  # the parent stays small: a child's peak memory starts at what its parent held
    from torch import Tensor, nn

    from service.encoders.checkpoint import Checkpoint
    from training.config import TrainingConfig
    from training.data.formats import Example

OURS, KEEPING, THEIRS = "eoseek", "eoseek, activations kept", "sentence-transformers"
Result = dict[str, Any]


@dataclass(frozen=True)
class Trainee:
    """An engine ready to train: its backward on a batch, which returns the loss, and what it tunes."""

    backward: "Callable[[list[Example]], Tensor]"
    parameters: "list[nn.Parameter]"
    optimizer: Any


def main() -> int:
    arguments = parse()
    if not arguments.data.exists():
        print(f"{arguments.data} is not there; name training data (.jsonl or .jsonl.gz) with --data", file=sys.stderr)
        return 2
    if arguments.engine:
        print(json.dumps(measure(arguments)))
        return 0
    rounds: dict[str, list[Result]] = {OURS: [], KEEPING: [], THEIRS: []}
    for number in range(arguments.rounds):
        for engine, results in rounds.items():
            results.append(in_child(engine))
            print(f"round {number + 1}  {engine}: {results[-1]['pairs/s']:.2f} pairs/s", file=sys.stderr, flush=True)
    medians = {
        engine: {key: statistics.median(each[key] for each in results) for key in ("pairs/s", "peak MiB")}
        for engine, results in rounds.items()
    }
    write_json(arguments.json, {"arguments": sys.argv[1:], "medians": medians, "rounds": rounds})
    report(medians, rounds)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "train" / "train.jsonl.gz")
    parser.add_argument("--pairs", type=int, default=64, help="queries of a batch, each with its document")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--query-length", type=int, default=64, help="tokens")
    parser.add_argument("--document-length", type=int, default=256, help="tokens")
    parser.add_argument("--mini-batch", type=int, default=32, help="texts of a forward of sentence-transformers")
    parser.add_argument("--chunk-tokens", type=int, default=2048, help="tokens of a forward of ours")
    parser.add_argument("--kept-tokens", type=int, default=8192, help="for how many tokens ours keeps activations")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", choices=[OURS, KEEPING, THEIRS], help="measure this one here and print JSON")
    return parser.parse_args()


def in_child(engine: str) -> Result:
    command = [sys.executable, "-m", "benchmarks.training_speed", *sys.argv[1:], "--engine", engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    from service.encoders.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(arguments.base)
    config = run_config(arguments)
    batches = list(drawn(arguments.data, arguments.pairs, arguments.steps, config.seed))
    build = sentence_transformers if arguments.engine == THEIRS else eoseek
    trainee = build(checkpoint, config, arguments)
    seconds, losses, norms = [], [], []
    for batch in batches:
        start = time.perf_counter()
        losses.append(float(trainee.backward(batch)))
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainee.parameters, config.optimizer.max_grad_norm)))
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "pairs/s": arguments.pairs / statistics.median(seconds),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
        "gradient norms": norms,
        "tokens": sum(num_tokens(checkpoint, config, batch) for batch in batches) // len(batches),
    }


def run_config(arguments: argparse.Namespace) -> "TrainingConfig":
    """As a recipe would say it."""
    from training.config import config_from

    return config_from(
        {
            "name": "speed",
            "sets": [{"name": "pairs", "path": str(arguments.data.resolve())}],
            "num_steps": arguments.steps,
            "batch_size": arguments.pairs,
            "query_length": arguments.query_length,
            "document_length": arguments.document_length,
            "loss": {"temperature": 0.05},
            "tuning": {"method": arguments.method, "rank": arguments.rank},
            "optimizer": {"learning_rate": 5e-4 if arguments.method == "lora" else 2e-5},
            "memory": {
                "chunk_tokens": arguments.chunk_tokens,
                "kept_tokens": arguments.kept_tokens if arguments.engine == KEEPING else 0,
                "precision": arguments.precision,
            },
        }
    )


def drawn(path: Path, num_pairs: int, num_steps: int, seed: int) -> "Iterator[list[Example]]":
    """Batches of pairs; no query or document occurs twice, as theirs would take the second for a negative."""
    from training.data.formats import read_examples

    distinct = {each.query: each for each in {each.positives[0]: each for each in read_examples(path)}.values()}
    examples = list(distinct.values())
    if len(examples) < num_pairs * num_steps:
        sys.exit(f"{path} holds {len(examples)} distinct pairs, {num_steps} steps of {num_pairs} need more")
    chosen = random.Random(seed).sample(examples, num_pairs * num_steps)
    for start in range(0, len(chosen), num_pairs):
        yield chosen[start : start + num_pairs]


def tokenized(
    checkpoint: "Checkpoint", config: "TrainingConfig", batch: "list[Example]"
) -> tuple[list[list[int]], list[list[int]]]:
    queries = checkpoint.contract.limited_to(config.query_length)
    documents = checkpoint.contract.limited_to(config.document_length)
    return (
        queries.queries([each.query for each in batch], instruction="", truncate=True).token_ids,
        documents.documents([each.positives[0] for each in batch], truncate=True).token_ids,
    )


def num_tokens(checkpoint: "Checkpoint", config: "TrainingConfig", batch: "list[Example]") -> int:
    return sum(len(ids) for texts in tokenized(checkpoint, config, batch) for ids in texts)


def eoseek(checkpoint: "Checkpoint", config: "TrainingConfig", _: argparse.Namespace) -> Trainee:
    """As `training.run` puts it together."""
    import torch

    from training.gradient_cache import cached_step
    from training.loss import Objective, Targets
    from training.model import build_model
    from training.optimizer import MasterAdamW

    model = build_model(checkpoint, config, device="cpu").train()
    objective = Objective(config.loss, config.distillation)
    own = torch.arange(config.batch_size)
    targets = Targets(targets_B=own, masked_BN=torch.zeros(len(own), len(own), dtype=torch.bool))

    def loss(gathered: "Tensor") -> "Tensor":
        return objective(gathered[: len(own)], gathered[len(own) :], targets)["loss"]

    def backward(batch: "list[Example]") -> "Tensor":
        queries, documents = tokenized(checkpoint, config, batch)
        memory = config.memory
        return cached_step(
            queries + documents,
            embed=model,
            loss=loss,
            chunk_tokens=memory.chunk_tokens,
            kept_tokens=memory.kept_tokens,
        )

    parameters = list(model.tuned_parameters().values())
    optimizer = MasterAdamW([{"params": parameters, "weight_decay": 0.0}], lr=config.optimizer.learning_rate)
    return Trainee(backward, parameters, optimizer)


def sentence_transformers(checkpoint: "Checkpoint", config: "TrainingConfig", arguments: argparse.Namespace) -> Trainee:
    """The same adapters from the same seed, tuned by their cached loss and torch's AdamW."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from transformers.utils import logging

    from training.model import apply_tuning

    logging.disable_progress_bar()
    dtype = getattr(torch, arguments.precision)
    model = SentenceTransformer(str(checkpoint.path), device="cpu", model_kwargs={"dtype": dtype})
    torch.manual_seed(config.seed)
    apply_tuning(model[0].auto_model, config.tuning)
    model.train()
    loss = CachedMultipleNegativesRankingLoss(
        model, scale=1 / config.loss.temperature, mini_batch_size=arguments.mini_batch
    )

    def features(texts: list[str], length: int) -> Any:
        model.max_seq_length = length
        return model.preprocess(texts)

    def backward(batch: "list[Example]") -> "Tensor":
        frame = checkpoint.contract.frame
        queries = features([frame.query(each.query, "") for each in batch], config.query_length)
        documents = features([frame.document(*each.positives[0]) for each in batch], config.document_length)
        value = loss([queries, documents], None)
        value.backward()
        return value.detach()

    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.optimizer.learning_rate, weight_decay=0.0)
    return Trainee(backward, parameters, optimizer)


def report(medians: dict[str, dict[str, float]], rounds: dict[str, list[Result]]) -> None:
    print(f"{rounds[OURS][0]['tokens']} tokens a step")
    print("| engine | pairs/s | peak MiB | loss of step 1 | gradient norm |\n| --- | ---: | ---: | ---: | ---: |")
    for engine, values in medians.items():
        first = rounds[engine][0]
        print(
            f"| {engine} | {values['pairs/s']:.2f} | {values['peak MiB']:.0f} "
            f"| {first['losses'][0]:.4f} | {first['gradient norms'][0]:.3f} |"
        )
    theirs = medians[THEIRS]
    for engine in (OURS, KEEPING):
        speed, memory = (medians[engine][key] / theirs[key] for key in ("pairs/s", "peak MiB"))
        print(f"{engine}: {speed:.2f}x the pairs/s and {memory:.2f}x the memory of sentence-transformers")


if __name__ == "__main__":
    sys.exit(main())
