"""One suite for every encoder, over the interface that the batcher drives: vectors as of one text at a time in float32.

Those are calculated here by transformers' own attention and pooled by hand. vLLM's are skipped where this interpreter
cannot import it: CONTRIBUTING says how to make an environment that can (`make vllm-env`).
"""

import asyncio
import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from service.encoders.base import AsyncEncoder, Embeddings, Pooling, TokenIds
from service.encoders.checkpoint import DEFAULT_NAME, Checkpoint, built_path, load_checkpoint
from service.encoders.fused import has_integer_products
from service.encoders.remote_encoder import RemoteEncoder
from service.encoders.torch_loading import choose_dtype, load_encoder
from service.encoders.worker import LocalEncoder, WorkerEncoder
from service.errors import ConfigurationError, EncoderError
from service.settings import EncoderSettings
from tests.checkpoints import tiny_model, write_tiny_checkpoint
from tests.service.encoders.layouts import LAYOUTS
from tests.service.encoders.upstreams import KEY, eoseek_served, vllm_served, vllm_variables
from training.export import export, load_tuned_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MAX_LENGTH = 2100
LIMIT_SECONDS = 600  # for an engine to start, and for a batch
TEXTS = [
    "a",
    "merge two sorted lists",
    "naïve café, 检索, 🙂\n\n  indented\ttab",
    "def add(a, b):\n    return a + b",
    "0-dimensional biomaterials show inductive properties in 2,024 of 4,096 cells (p < 0.05).",
    "Merge multiple sorted inputs into a single sorted output, for example timestamped entries. " * 3,
]
LONG = "It was said again, and in other words. " * 400
KINDS = ["torch-float32", "torch-bfloat16", "torch-int16", "vllm", "remote-eoseek", "remote-vllm"]
EXACT = {"torch-float32", "remote-eoseek"}  # the service behind the latter calculates in float32 here
MIN_COSINE = 0.995
"""In bfloat16. vLLM gets more room on a text of one word, as it cannot calculate very short ones more exactly."""


@dataclass
class Subject:
    """An encoder that is driven from synchronous tests, and what it is held against."""

    kind: str
    checkpoint: Checkpoint
    pooling: Pooling
    encoder: AsyncEncoder
    runner: asyncio.Runner

    @property
    def min_cosine(self) -> float:
        return 0.99999 if self.kind in EXACT else 0.999 if self.kind == "torch-int16" else MIN_COSINE

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        return self.runner.run(self.encoder.encode(token_ids))

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        return self.checkpoint.contract.documents([("", text) for text in texts], truncate=True).token_ids

    def cosines(self, embeddings: Embeddings, token_ids: Sequence[TokenIds]) -> Embeddings:
        """To the vectors that these texts have in float32, each encoded alone."""
        return (embeddings * reference(self.checkpoint.path, self.pooling, token_ids)).sum(axis=1)


@functools.lru_cache(maxsize=1)
def _model(path: Path) -> torch.nn.Module:
    return AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@functools.lru_cache(maxsize=1000)
def _reference(path: Path, pooling: Pooling, ids: tuple[int, ...]) -> Embeddings:
    with torch.inference_mode():
        hidden = _model(path)(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    vector = {"last_token": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[pooling]
    return (vector / vector.norm()).float().numpy()


def reference(path: Path, pooling: Pooling, token_ids: Sequence[TokenIds]) -> Embeddings:
    """Shape (len(token_ids), dimension): one text at a time, in float32, by the model's own eager attention."""
    return np.stack([_reference(path, pooling, tuple(ids)) for ids in token_ids])


def opened(kind: str, path: Path, stack: ExitStack, *, max_length: int, trust_urls: bool = False) -> AsyncEncoder:
    """An encoder of this kind, not yet started; what it needs beside it lives as long as the stack."""
    if "vllm" in kind and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed in this environment; `make vllm-env` makes one that has it")
    if kind == "torch-bfloat16" and choose_dtype("auto", "cpu") is not torch.bfloat16:
        pytest.skip("this processor does not multiply bfloat16")
    if kind == "torch-int16" and not has_integer_products():
        pytest.skip("this processor has no AVX2, or the package was installed without a C compiler")
    if kind.startswith("remote"):
        served = (
            vllm_served(path, max_length=max_length)
            if kind == "remote-vllm"
            else eoseek_served(path, encoder__dtype="float32", encoder__max_length=str(max_length))
        )
        settings = EncoderSettings(
            backend="remote",
            urls=json.dumps([stack.enter_context(served)]),
            api_key=KEY,
            url_timeout_seconds=LIMIT_SECONDS,
            trust_urls=trust_urls,
        )
        checkpoint = load_checkpoint(str(path), max_length=max_length)
        return RemoteEncoder(checkpoint, settings, limit_seconds=LIMIT_SECONDS)
    if kind.startswith("torch"):
        dtype = kind.removeprefix("torch-")
        return LocalEncoder(load_encoder(str(path), dtype=dtype, device="cpu", max_length=max_length))
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in vllm_variables().items():
        patch.setenv(name, value)
    options = {"factory": "service.encoders.vllm_encoder:load_encoder", "checkpoint_path": str(path)}
    options |= {"dtype": "bfloat16", "max_length": max_length}
    return WorkerEncoder(options, start_timeout_seconds=LIMIT_SECONDS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as `training` writes it, with room for 2,000 tokens and heads of a size that vLLM knows."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_tiny_checkpoint(
        folder / "tuned", max_length=MAX_LENGTH, model=tiny_model("llama", max_position_embeddings=4096, head_dim=32)
    )
    export(load_tuned_model(folder / "tuned"), folder / "exported", dtype="float32")
    return folder / "exported"


@pytest.fixture(scope="module", params=["exported", "default"])
def path(request: pytest.FixtureRequest, exported: Path) -> Path:
    if request.param == "exported":
        return exported
    default = built_path(DEFAULT_NAME)
    if not default.is_dir():
        pytest.skip("the default checkpoint is not pulled; `make model` fetches it")
    return default


@pytest.fixture(scope="module", params=KINDS)
def subject(request: pytest.FixtureRequest, path: Path) -> Iterator[Subject]:
    with ExitStack() as stack:
        encoder = opened(request.param, path, stack, max_length=MAX_LENGTH)
        yield started(request.param, path, encoder, stack, pooling="last_token")


def started(
    kind: str, path: Path, encoder: AsyncEncoder, stack: ExitStack, *, pooling: Pooling, max_length: int = MAX_LENGTH
) -> Subject:
    runner = stack.enter_context(asyncio.Runner())
    stack.callback(lambda: runner.run(encoder.stop()))
    runner.run(encoder.start())
    checkpoint = load_checkpoint(str(path), max_length=max_length)
    return Subject(kind=kind, checkpoint=checkpoint, pooling=pooling, encoder=encoder, runner=runner)


def test_encode_gives_float32_unit_rows_in_input_order_as_of_one_text_at_a_time(subject: Subject) -> None:
    token_ids = subject.documents(TEXTS)
    embeddings = subject.encode(token_ids)
    assert isinstance(subject.encoder, AsyncEncoder)
    assert embeddings.shape == (len(TEXTS), subject.checkpoint.dimension) == (len(TEXTS), subject.encoder.dimension)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    assert subject.cosines(embeddings, token_ids)[1:].min() >= subject.min_cosine
    assert subject.cosines(embeddings, token_ids)[0] >= (0.99 if "vllm" in subject.kind else subject.min_cosine)

    reversed_rows = subject.encode(token_ids[::-1])
    assert (reversed_rows[::-1] * embeddings).sum(axis=1).min() >= subject.min_cosine


def test_encode_nothing_gives_no_rows(subject: Subject) -> None:
    assert subject.encode([]).shape == (0, subject.checkpoint.dimension)


def test_encode_text_of_2000_tokens_among_short_ones_is_as_if_alone(subject: Subject) -> None:
    contract = subject.checkpoint.contract.limited_to(2000)
    token_ids = contract.documents([("", TEXTS[1]), ("", LONG), ("", TEXTS[3])], truncate=True).token_ids
    assert len(token_ids[1]) == 2000
    assert subject.cosines(subject.encode(token_ids), token_ids).min() >= subject.min_cosine


def test_encode_cut_text_has_the_vector_of_its_beginning_and_eos(subject: Subject) -> None:
    tokenized = subject.checkpoint.contract.documents([("", LONG)], truncate=True)
    (ids,) = tokenized.token_ids
    assert (tokenized.truncated, len(ids)) == ([0], MAX_LENGTH)
    assert subject.cosines(subject.encode([ids]), [ids]).min() >= subject.min_cosine


def test_encode_reads_the_state_at_eos_and_adds_none(subject: Subject) -> None:
    (ids,) = subject.documents([TEXTS[4]])
    bare = ids[:-1]
    if subject.kind == "remote-eoseek":  # completes ids by itself, which its count of tokens shows
        with pytest.raises(EncoderError, match="refused"):
            subject.encode([bare])
        return
    embeddings = subject.encode([ids, bare])
    assert subject.cosines(embeddings, [ids, bare]).min() >= subject.min_cosine
    assert embeddings[0] @ embeddings[1] < 0.99


def test_encode_instruction_is_part_of_the_query_s_vector(subject: Subject) -> None:
    contract = subject.checkpoint.contract
    token_ids = [
        ids
        for instruction in ("Find the function", "Find the function that does not", "")
        for ids in contract.queries(TEXTS[1:3], instruction=instruction).token_ids
    ]
    embeddings = subject.encode(token_ids)
    assert subject.cosines(embeddings, token_ids).min() >= subject.min_cosine
    assert (embeddings[0::2] @ embeddings[0::2].T)[np.triu_indices(3, 1)].max() < 0.9999
    # again: now from whatever was kept of the instructions
    assert subject.cosines(subject.encode(token_ids), token_ids).min() >= subject.min_cosine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_public_layout_loads_or_is_refused_with_the_reason(kind: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / layout
    pooling = LAYOUTS[layout](path)
    with ExitStack() as stack:
        encoder = opened(kind, path, stack, max_length=100, trust_urls=True)
        subject = started(kind, path, encoder, stack, pooling=pooling, max_length=100)
        token_ids = subject.documents(TEXTS[1:])
        assert subject.cosines(subject.encode(token_ids), token_ids).min() >= subject.min_cosine


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layout_that_records_no_vectors_is_not_taken_from_upstreams_unasked(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / layout)
    checkpoint = load_checkpoint(str(tmp_path / layout))
    settings = EncoderSettings(backend="remote", urls='["http://127.0.0.1:9"]')
    with pytest.raises(ConfigurationError, match=r"records no vectors.*EOSEEK_ENCODER__TRUST_URLS"):
        asyncio.run(RemoteEncoder(checkpoint, settings, limit_seconds=1).start())
