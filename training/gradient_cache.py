"""One training step in bounded memory: embed in chunks, differentiate the loss by the embeddings, then chunk by chunk.

The gradient is that of the whole batch at once. Chunks hold texts of similar length. Of the first chunks, as far as
`kept_tokens` reaches, activations are kept from the first forward; of the others the forward runs twice.

Across processes every process computes the loss of the whole batch from all embeddings, which costs a few products
of small matrices and keeps one definition of the loss. Its gradient by a process's own embeddings is complete, so
gathering needs no backward communication, and the parameter gradients of the processes are to be *added*: where a
wrapper averages them instead, `scale` makes up for it.
Source: arXiv:2101.06983.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Embed = Callable[[list[list[int]]], Tensor]
"""Differentiable: token ids of n texts to (n, dimension)."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Texts that share a forward, by index."""

    indices: list[int]
    num_tokens: int


def plan_chunks(lengths: Sequence[int], *, chunk_tokens: int, min_chunks: int = 0) -> list[Chunk]:
    """Texts of similar length together, at most `chunk_tokens` a chunk; a longer text has a chunk of its own.

    Args:
        lengths: tokens of each text.
        chunk_tokens: limit of a chunk.
        min_chunks: split further until there are so many, as far as there are texts.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: lengths[index])
    groups: list[list[int]] = []
    tokens = 0
    for index in by_length:
        if not groups or tokens + lengths[index] > chunk_tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += lengths[index]
    while len(groups) < min_chunks:
        largest = max(groups, key=len)
        if len(largest) == 1:
            break
        position, half = groups.index(largest), len(largest) // 2
        groups[position : position + 1] = [largest[:half], largest[half:]]
    return [Chunk(indices=group, num_tokens=sum(lengths[index] for index in group)) for group in groups]


def cached_step(
    token_ids: Sequence[list[int]],
    *,
    embed: Embed,
    loss: Callable[[Tensor], Tensor],
    chunk_tokens: int,
    kept_tokens: int = 0,
    counts: Sequence[int] | None = None,
    num_chunks: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Add the gradient of the batch to the parameters of `embed` and return the loss.

    Args:
        token_ids: this process's texts, queries first.
        embed: the model.
        loss: from the embeddings of all processes, in order of processes, to a scalar; raises to stop the step.
        chunk_tokens: tokens of one forward.
        kept_tokens: activations are kept for so many tokens.
        counts: texts of each process; None without processes.
        num_chunks: chunks at least, so that all processes run alike.
        scale: multiplies the embeddings' gradient.
    Returns:
        The loss, detached.
    """
    chunks = plan_chunks([len(ids) for ids in token_ids], chunk_tokens=chunk_tokens, min_chunks=num_chunks)
    runs = _first_forwards(token_ids, chunks, embed, kept_tokens)
    own = torch.cat([run.embeddings.detach() for run in runs])
    order = [index for chunk in chunks for index in chunk.indices]
    own = own[torch.tensor(order, device=own.device).argsort()]
    gathered = gather(own, counts).requires_grad_()
    value = loss(gathered)
    value.backward()  # type: ignore[no-untyped-call]
    assert gathered.grad is not None
    gradient = own_part(gathered.grad, counts) * scale
    for chunk, run in zip(chunks, runs, strict=True):
        run.backward([token_ids[index] for index in chunk.indices], gradient[chunk.indices], embed)
    return value.detach()


class _Run:
    """The first forward of a chunk: its embeddings, with their graph or with the random state to run it again."""

    def __init__(self, token_ids: list[list[int]], embed: Embed, *, keep: bool) -> None:
        self._random_state = None if keep else _RandomState()
        with torch.set_grad_enabled(keep):
            self.embeddings = embed(token_ids)

    def backward(self, token_ids: list[list[int]], gradient: Tensor, embed: Embed) -> None:
        if self._random_state is None:
            self.embeddings.backward(gradient)  # type: ignore[no-untyped-call]
        else:
            # dropout must drop what it dropped before
            with self._random_state:
                embed(token_ids).backward(gradient)  # type: ignore[no-untyped-call]


def _first_forwards(
    token_ids: Sequence[list[int]], chunks: Sequence[Chunk], embed: Embed, kept_tokens: int
) -> list[_Run]:
    runs = []
    for chunk in chunks:
        keep = chunk.num_tokens <= kept_tokens
        kept_tokens -= chunk.num_tokens if keep else 0
        runs.append(_Run([token_ids[index] for index in chunk.indices], embed, keep=keep))
    return runs


class _RandomState:
    """The random state of now, taken up again inside a `with` block and put back after it."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def __enter__(self) -> None:
        self._outside = _RandomState()
        self._restore()

    def __exit__(self, *_: object) -> None:
        self._outside._restore()
        del self._outside

    def _restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._device is not None:
            torch.cuda.set_rng_state(self._device)


def gather(own: Tensor, counts: Sequence[int] | None) -> Tensor:
    """Embeddings of all processes, one process after the other; carries no gradient, see the module's note.

    Args:
        own: (own count, dimension).
        counts: rows of each process; None returns a copy of `own`.
    """
    if counts is None or len(counts) == 1:
        return own.clone()
    padded = own.new_zeros((max(counts), own.shape[1]))
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def own_part(gathered: Tensor, counts: Sequence[int] | None) -> Tensor:
    """The rows of `gathered` that this process contributed."""
    if counts is None or len(counts) == 1:
        return gathered
    start = sum(counts[: dist.get_rank()])
    return gathered[start : start + counts[dist.get_rank()]]


def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients of all processes in place, in one message; a parameter without gradient counts as zero."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype or parameter.dtype)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
