"""Writes a checkpoint with the architecture, tokenizer and pooling of another and random weights.

    python -m benchmarks.untrained LIKE OUTPUT [--seed 17]

What a learning curve is compared with: what pre-training gave shows against the same architecture without it.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from service.encoders.card import CheckpointCard
from service.encoders.checkpoint import load_checkpoint
from service.encoders.layout import write_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", help="a checkpoint directory or hub name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.like)
    torch.manual_seed(arguments.seed)
    model = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint.path))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    write_checkpoint(
        arguments.output,
        model,
        tokenizer.backend_tokenizer,
        special_tokens=tokenizer.special_tokens_map,
        pooling=checkpoint.pooling,
        max_length=checkpoint.max_length,
        card=CheckpointCard(
            name=f"untrained-{Path(arguments.like).name}",
            is_tuned=False,
            base=arguments.like,
            licence="",
            query_template=checkpoint.contract.frame.query_template,
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
