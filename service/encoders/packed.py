"""The packed forward: all texts of a batch in one row of tokens, without padding outside attention.

A function registered with transformers' attention interface attends within each sequence only, so every family that
goes through that interface works without model surgery. Inside attention neighbouring sequences share one call, so they
should come sorted by length. On a processor those of equal length do: its kernels round differently by the length that
they see, and so a text's vector is the same bits whatever shares its row, as far as matrix products are. (What `fused`
gives them has lengths rounded up to a multiple; then a token's bits do not depend on where its text ends either.) On a
GPU, where a call costs more than padding, those of similar length do, right-padded just there: a causal call needs no
mask for that. Families outside the interface take `padded_forward`. Differentiable, so training uses it.

A sequence may continue from a `Prefix`, keys and values that an earlier row kept: under causal attention they do not
depend on what follows. The row then holds the rest of the text only; attention puts the prefix before it.

Shapes: T tokens of the row, H heads, D head size, N sequences, L longest sequence of a group, P tokens of a prefix.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from service.encoders.checkpoint import POSITIONS_AFTER_PADDING

if TYPE_CHECKING:  # a worker may do without transformers, which takes seconds to import
    from transformers import PreTrainedModel

    from service.encoders.decoder import Decoder

Model: TypeAlias = "PreTrainedModel | Decoder"

ATTENTION = "eoseek_packed"
# a padded slot costs attention only, a further call costs about what 16 padded slots cost in every sequence
_PADDING_SHARE = 0.8
_PADDING_SLOTS = 16


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a text's first tokens as attention takes them, rotated, in the dtype of the calculation."""

    length: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (key heads, P, D) each, in order of the calls

    def cut(self, length: int) -> "Prefix":
        """The states of the first `length` tokens, as views."""
        if length == self.length:
            return self
        return Prefix(length, [(key[:, :length], value[:, :length]) for key, value in self.layers])


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of equal or similar length, and of one prefix if any, that share one attention call."""

    start: int
    end: int
    lengths: list[int]
    width: int  # L, at least the longest sequence
    prefix: Prefix | None = None
    slots_NL: Tensor | None = None  # row index of each slot; None when they are neighbours in the row
    valid_NL: Tensor | None = None  # which slots hold a token; None when the first ones do, as many as there are tokens

    @property
    def num_before(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else self.prefix.length

    def unpack(self, x_HTD: Tensor) -> Tensor:
        """(H, T, D) of the whole row to (N, H, L, D) of this group."""
        if self.slots_NL is not None:
            return x_HTD[:, self.slots_NL].transpose(0, 1)
        heads, _, size = x_HTD.shape
        own = x_HTD[:, self.start : self.start + len(self.lengths) * self.width]
        return own.reshape(heads, len(self.lengths), self.width, size).transpose(0, 1)

    def after_prefix(self, key: Tensor, value: Tensor, call: int) -> tuple[Tensor, Tensor]:
        """(N, H, L, D) to (N, H, P + L, D), for the attention call of this number in a forward."""
        if self.prefix is None:
            return key, value
        before = [x_HPD.expand(len(key), -1, -1, -1) for x_HPD in self.prefix.layers[call]]
        # autocast leaves rotated keys in float32 and rounds them inside attention: here first, as the kept ones were
        own = (key.to(before[0].dtype), value.to(before[1].dtype))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(before, own, strict=True))
        return keys, values

    def pack(self, x_NHLD: Tensor) -> Tensor:
        """(N, H, L, D) to (tokens of this group, H, D)."""
        x_NLHD = x_NHLD.transpose(1, 2)
        return x_NLHD.flatten(0, 1)[: self.end - self.start] if self.valid_NL is None else x_NLHD[self.valid_NL]


@dataclass(frozen=True)
class Packing:
    """How sequences lie in the row, and the masks that their attention needs."""

    lengths: list[int]
    groups: list[Group]
    position_ids_1T: Tensor
    kept: list[tuple[int, Prefix]] = field(default_factory=list)  # row index of a sequence, what to keep of its start
    calls: Iterator[int] = field(default_factory=itertools.count)  # numbers the attention calls of one forward
    masks: dict[tuple[int, bool, int | None], Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        position_offset: int = 0,
        prefixes: Sequence[Prefix | None] | None = None,
        keep: Mapping[int, Prefix] | None = None,
        is_padded: bool | None = None,
        multiple: int = 1,
    ) -> "Packing":
        """Plan the row for sequences of these lengths, in this order; each length > 0.

        Args:
            lengths: tokens of each sequence in the row.
            device: of the row.
            position_offset: position of a text's first token.
            prefixes: what each sequence continues from; neighbours with the same one share calls.
            keep: by sequence, a prefix without layers that a forward fills from it; for one without a prefix.
            is_padded: whether similar lengths share a call, not only equal ones; None means on a GPU.
            multiple: to which lengths are rounded up inside attention, prefix included; more than 1 is for causal
                attention only, where what follows a text is not seen.
        """
        prefixes = prefixes or [None] * len(lengths)
        if is_padded is None:
            is_padded = torch.device(device).type != "cpu"
        num_tokens = sum(lengths)
        groups, start, first = [], 0, 0
        for _, same in itertools.groupby(zip(lengths, prefixes, strict=True), key=lambda each: id(each[1])):
            prefix = prefixes[first]
            num_before = 0 if prefix is None else prefix.length
            widths = [-(-(num_before + length) // multiple) * multiple - num_before for length, _ in same]
            for run in _similar_runs(widths) if is_padded else _equal_runs(widths):
                members = list(lengths[first : first + len(run)])
                groups.append(_group(start, members, max(run), num_tokens, prefix, device))
                start, first = start + sum(members), first + len(members)
        before = [0 if prefix is None else prefix.length for prefix in prefixes]
        positions = torch.cat([torch.arange(n, n + length) for n, length in zip(before, lengths, strict=True)])
        starts = [0, *itertools.accumulate(lengths)]
        kept = [(starts[index], prefix) for index, prefix in (keep or {}).items()]
        return cls(list(lengths), groups, (positions + position_offset).to(device).unsqueeze(0), kept)

    def keep_states(self, key: Tensor, value: Tensor) -> None:
        """Copy what is to be kept of the row's keys and values, (1, key heads, T, D)."""
        for start, prefix in self.kept:
            own = slice(start, start + prefix.length)
            states = key[0, :, own].to(value.dtype), value[0, :, own]
            # of one head after the other: a copy that keeps the order of its source has token after token
            key_HPD, value_HPD = (x_HPD.clone(memory_format=torch.contiguous_format) for x_HPD in states)
            prefix.layers.append((key_HPD, value_HPD))

    def mask(self, index: int, *, causal: bool, window: int | None) -> Tensor | None:
        """Boolean mask of group `index`, True where attended; None when causality alone says it all."""
        key = (index, causal, window)
        if key not in self.masks:
            self.masks[key] = _mask(self.groups[index], causal, window, self.position_ids_1T.device)
        return self.masks[key]


def _equal_runs(lengths: Sequence[int]) -> list[list[int]]:
    return [list(members) for _, members in itertools.groupby(lengths)]


def _similar_runs(lengths: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    low = high = 0
    for length in lengths:
        shortest, longest = min(low, length), max(high, length)
        if runs and (shortest >= _PADDING_SHARE * longest or longest - shortest <= _PADDING_SLOTS):
            runs[-1].append(length)
            low, high = shortest, longest
        else:
            runs.append([length])
            low = high = length
    return runs


def _group(
    start: int, lengths: list[int], width: int, num_tokens: int, prefix: Prefix | None, device: torch.device | str
) -> Group:
    end = start + sum(lengths)
    # one text's padded slots may be what follows it in the row
    if min(lengths) == width or (len(lengths) == 1 and start + width <= num_tokens):
        return Group(start, end, lengths, width, prefix)
    lengths_N = torch.tensor(lengths)
    starts_N = start + lengths_N.cumsum(0) - lengths_N
    column_L = torch.arange(width)
    valid_NL = column_L < lengths_N[:, None]
    # padded slots read the row's last token of the group: any finite value does
    slots_NL = torch.clamp(starts_N[:, None] + column_L, max=end - 1)
    return Group(start, end, lengths, width, prefix, slots_NL.to(device), valid_NL.to(device))


def _mask(group: Group, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    before, longest = group.num_before, group.num_before + group.width
    assert causal or not before, "only causal attention can continue from a prefix"
    windowed = window is not None and longest > window
    ragged = group.valid_NL is not None and not causal
    if not windowed and not ragged and not before:
        return None
    column_K = torch.arange(longest, device=device)  # K = P + L
    distance_LK = column_K[before:, None] - column_K[None, :]
    allowed_LK = distance_LK >= 0 if causal else torch.ones_like(distance_LK, dtype=torch.bool)
    if windowed:
        assert window is not None
        allowed_LK = allowed_LK & (distance_LK.abs() < window)
    mask = allowed_LK[None, None]
    if ragged:
        assert group.valid_NL is not None
        mask = mask & group.valid_NL[:, None, None, :]
    return mask


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  (transformers passes it by position; always None here)
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed sequence, in the form that transformers' attention interface asks for.

    Args:
        module: the attention layer; its `is_causal` decides when the argument is None.
        query: (1, H, T, D).
        key: (1, key heads, T, D).
        value: (1, key heads, T, D).
        attention_mask: unused, the packing knows.
        packing: where sequences begin and end.
        scaling: multiplies the scores; D ** -0.5 when None.
        dropout: probability while training.
        sliding_window: tokens that a token sees, itself included (Mistral, Gemma 3).
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        is_causal: whether a token sees only what comes before it.
    Returns:
        (1, T, H, D), and None for the attention weights.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    outputs = []
    call = next(packing.calls)
    packing.keep_states(key, value)
    for index, group in enumerate(packing.groups):
        q, k, v = (group.unpack(x[0]) for x in (query, key, value))
        k, v = group.after_prefix(k, v, call)
        mask = packing.mask(index, causal=causal, window=sliding_window)
        if softcap is not None:
            attended = _softcapped(q, k, v, mask=mask, causal=causal, scaling=scaling, softcap=softcap)
        else:
            attended = nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal and mask is None,
                scale=scaling,
                enable_gqa=k.shape[1] != q.shape[1],
            )
        outputs.append(group.pack(attended))
    return torch.cat(outputs).unsqueeze(0), None


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, scaling: float | None, softcap: float
) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _no_mask(*_: Any, **__: Any) -> None:
    """Keep transformers from building a (T, T) mask that nothing would read."""


def enable_packing(model: Model) -> bool:
    """Switch a model to packed attention; False when its family does not use the attention interface."""
    if is_packed_only(model):
        return True
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    if not getattr(model, "_supports_attention_backend", False):
        return False
    cast("PreTrainedModel", model).set_attn_implementation(ATTENTION)
    return True


def is_packed_only(model: Model) -> bool:
    """Whether this is our own `Decoder`, which has no other attention."""
    return bool(getattr(model, "is_packed_only", False))


def keep_norms_in_float32(model: "PreTrainedModel") -> "PreTrainedModel":
    """Norms of a bfloat16 model go with its float32 residual stream, see `_last_hidden`."""
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            module.float()
    return model


class _Widened(TorchFunctionMode):
    """Layers calculate in a wider number format than their weights have; a layer's are widened while it runs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.functional.linear, nn.functional.layer_norm, nn.functional.rms_norm):
            args = tuple(map(self._widen, args))
            kwargs = {name: self._widen(each) for name, each in kwargs.items()}
        return func(*args, **kwargs)

    def _widen(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) else value


def packed_forward(
    model: Model,
    token_ids: Sequence[Sequence[int]],
    *,
    is_widened: bool = False,
    prefixes: Sequence[Prefix | None] | None = None,
    keep: Mapping[int, Prefix] | None = None,
) -> Tensor:
    """Last hidden states of all tokens, in one packed row.

    Args:
        model: a model for which `enable_packing` returned True.
        token_ids: non-empty sequences, without their prefix; sorted by length they cost least.
        is_widened: calculate bfloat16 weights in float32, and float32 ones in float64; slow, for short rows.
        prefixes: as in `Packing.of`.
        keep: as in `Packing.of`.
    Returns:
        (T, hidden size); sequences one after the other, in order, without their prefixes.
    """
    config, device = model.config, model.device
    after_padding = config.model_type in POSITIONS_AFTER_PADDING
    packing = Packing.of(
        [len(ids) for ids in token_ids],
        device=device,
        position_offset=config.pad_token_id + 1 if after_padding else 0,
        prefixes=prefixes,
        keep=keep,
    )
    row_1T = torch.tensor([i for ids in token_ids for i in ids], device=device).unsqueeze(0)
    inputs = {"packing": packing, "position_ids": packing.position_ids_1T, "use_cache": False}
    return _last_hidden(model, row_1T, is_widened, **inputs)[0]


def _last_hidden(model: Model, ids: Tensor, is_widened: bool, **inputs: Any) -> Tensor:
    """Hidden states; a bfloat16 model multiplies in bfloat16 and keeps its residual stream in float32.

    Rounding the stream after every layer costs accuracy, worst for short texts: on SmolLM2-135M the lowest cosine to
    float32 among 64 queries was 0.967 with a bfloat16 stream and 0.997 with this one.
    """
    if is_widened:
        wide = torch.float32 if model.dtype == torch.bfloat16 else torch.float64
        with _Widened(wide):
            widened: Tensor = model(
                inputs_embeds=model.get_input_embeddings()(ids).to(wide), **inputs
            ).last_hidden_state
        return widened
    if model.dtype != torch.bfloat16:
        hidden: Tensor = model(input_ids=ids, **inputs).last_hidden_state
        return hidden
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        hidden = model(inputs_embeds=model.get_input_embeddings()(ids).float(), **inputs).last_hidden_state
    return hidden


def padded_forward(model: "PreTrainedModel", token_ids: Sequence[Sequence[int]], *, is_widened: bool = False) -> Tensor:
    """As `packed_forward`, for families outside the attention interface: one right-padded batch, padding cut away."""
    lengths_N = torch.tensor([len(ids) for ids in token_ids], device=model.device)
    valid_NL = torch.arange(int(lengths_N.max()), device=model.device) < lengths_N[:, None]
    ids_NL = torch.full(valid_NL.shape, model.config.pad_token_id or 0, device=model.device)
    ids_NL[valid_NL] = torch.tensor([i for ids in token_ids for i in ids], device=model.device)
    return _last_hidden(model, ids_NL, is_widened, attention_mask=valid_NL.long())[valid_NL]
