"""The layers of a decoder with few passes over memory: weights packed once, norms, rotation and gate in one pass each.

What transformers runs between two products of a layer are some forty operations that each read and write the whole row;
on a processor with fast bfloat16 products they took a third of the time of 1,024 tokens and more than half of that of
12. Here they are three functions of `kernels.c`, built when the package is installed, where there is a compiler. Query,
key and value are one product, gate and up another, of weights that are packed at load instead of in each call; the
worker holds that copy too. Behind the last attention only the last token of each text goes on, whose state is the
embedding.

For a few families, on processors, in bfloat16 or, for a model in float32, with products in 16-bit integers;
`TorchEncoder` compares it with the model's own forward at load, and runs that for everything else. Numbers are as in
`packed_forward`: the residual stream, norms, rotation and gate are float32.

Products in bfloat16 are oneDNN's. They have at least `MIN_ROWS` rows, of filler where need be: it takes another kernel
for fewer, which rounds otherwise, and a query's vector would depend on how many come with it. Attention beside them is
`packed_attention`, which sees lengths that are multiples of 32, so that the states of an opening are the same bits in
every text that has it.

Products in integers are ours (`products.c`), of rows and weights that are rounded to 3,663 steps each: AVX2 multiplies
twice as many of them as of float32, and torch has no such product. So is attention beside them (`attention.c`): one
call a layer for all texts and their prefixes, without masks, padding or keys that are joined. What is beside a text
changes neither.

Shapes: T tokens of the row, D hidden size or what a product makes of it, N texts, H heads.
"""

import ctypes
import functools
import importlib.util
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from service.encoders.packed import Model, Packing, Prefix, is_packed_only, packed_attention
from service.encoders.plain import DECODER_FAMILIES

log = logging.getLogger(__name__)

# measured on two cores with AMX: the same bits for 37 to 256 rows of two threads, and for 37 to 570 of one
MIN_ROWS = 40
# of lengths in attention: its kernel adds up in such pieces, so a token's bits do not depend on where its text ends
_MULTIPLE = 32
_VERSION = 4  # of the arguments below and the layout of weights, as in kernels.c
_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "eoseek_add_norm": [_POINTER, _POINTER, _POINTER, _FLOAT, _POINTER, _LONG, _LONG, _INT],
    "eoseek_rotate": [_POINTER, _POINTER, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _LONG, _LONG, _INT],
    "eoseek_gate": [_POINTER, _POINTER, _LONG, _LONG, _INT],
}
_INTEGER_ARGUMENTS: dict[str, list[Any]] = {
    "eoseek_pack": [*[_POINTER] * 3, *[_LONG] * 2],
    "eoseek_product": [*[_POINTER] * 7, *[_LONG] * 3],
    "eoseek_attend": [*[_POINTER] * 6, *[_LONG] * 5, _FLOAT],
}
Product = Callable[[Tensor], Tensor]


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The functions of `kernels.c`, `products.c` and `attention.c`; None where they were not built."""
    found = importlib.util.find_spec("service.encoders._kernels")
    if found is None or found.origin is None:
        log.info("installed without a C compiler, so encoding is slower: see Needs in README")
        return None
    try:
        kernels = ctypes.CDLL(found.origin)
        version = ctypes.c_int.in_dll(kernels, "eoseek_kernels_version").value
    except (OSError, ValueError) as error:  # built for another machine, or no such name in it
        log.warning("the kernels %s cannot be loaded, so encoding is slower: %s", found.origin, error)
        return None
    if version != _VERSION:
        log.warning("the kernels %s are of another version, so encoding is slower: install again", found.origin)
        return None
    for name, arguments in (_ARGUMENTS | (_INTEGER_ARGUMENTS if kernels.eoseek_has_products() else {})).items():
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, None
    return kernels


def _constant(kernels: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int.in_dll(kernels, f"eoseek_{name}").value


def has_integer_products() -> bool:
    """Whether this processor has products in 16-bit integers, and the package was built with them."""
    kernels = load_kernels()
    return kernels is not None and bool(kernels.eoseek_has_products())


class _Product:
    """Linear layers on the same input as one, with weights as oneDNN packs them."""

    def __init__(self, *layers: nn.Linear) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None

    def __call__(self, x_TD: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, self._packed, self._bias, "none", [], "")
        return product


class _IntegerProduct:
    """Linear layers on the same input as one, in 16-bit integers: see `products.c`."""

    def __init__(self, kernels: ctypes.CDLL, *layers: nn.Linear) -> None:
        self._size = layers[0].in_features
        self._columns = sum(layer.out_features for layer in layers)
        self._tile = _constant(kernels, "product_rows")
        width = _constant(kernels, "product_columns")
        assert not self._size % 2, "an odd number of inputs"
        assert not any(layer.out_features % width for layer in layers), "no whole tiles of outputs"
        self._weight = torch.empty(self._columns, self._size, dtype=torch.int16)  # in the order of `eoseek_product`
        self._scales = torch.empty(self._columns, dtype=torch.float32)
        start = 0
        for layer in layers:
            own = slice(start, start := start + layer.out_features)
            weight, packed, scales = layer.weight.detach().contiguous(), self._weight[own], self._scales[own]
            kernels.eoseek_pack(weight.data_ptr(), packed.data_ptr(), scales.data_ptr(), *weight.shape)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        assert self._bias is None or len(self._bias) == self._columns, "all layers have a bias, or none"
        self._kernels = kernels

    def __call__(self, x_TD: Tensor) -> Tensor:
        rows, size = x_TD.shape
        assert (size, x_TD.dtype) == (self._size, torch.float32)
        x_TD = x_TD.contiguous()
        # of x's format: torch's default is another while transformers loads a model beside this
        product, scales = x_TD.new_empty(rows, self._columns), x_TD.new_empty(rows)
        rounded = x_TD.new_empty(-(-rows // self._tile) * self._tile, size, dtype=torch.int16)
        self._kernels.eoseek_product(
            x_TD.data_ptr(),
            self._weight.data_ptr(),
            self._scales.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            rounded.data_ptr(),
            scales.data_ptr(),
            product.data_ptr(),
            rows,
            self._size,
            self._columns,
        )
        return product


class _IntegerAttention:
    """Attention of one forward in 16-bit integers: see `attention.c`."""

    def __init__(self, kernels: ctypes.CDLL, packing: Packing, heads: int, key_heads: int, head_size: int) -> None:
        self._kernels = kernels
        self._packing = packing
        self._shape = (heads, key_heads, head_size)
        self._prefixes = list({id(group.prefix): group.prefix for group in packing.groups if group.prefix}.values())
        numbers = {id(prefix): number for number, prefix in enumerate(self._prefixes)}
        keys = _constant(kernels, "attention_keys")
        texts, row, block = [], 0, 0
        for group in packing.groups:
            for length in group.lengths:
                texts.append((row, length, group.num_before, numbers.get(id(group.prefix), 0), block))
                row, block = row + length, block - -(group.num_before + length) // keys
        self._texts = torch.tensor(texts, dtype=torch.int64)
        self._num_blocks = block
        # of keys and of values
        self._packed = torch.empty(2 * block * key_heads * keys * head_size, dtype=torch.int16)
        self._scales = torch.empty(2 * block * key_heads * keys, dtype=torch.float32)

    def __call__(self, qkv_TD: Tensor, layer: "_Layer") -> Tensor:
        """(T, H D), of the layers in their order."""
        heads, key_heads, head_size = self._shape
        call = next(self._packing.calls)
        _, key, value = _split_heads(qkv_TD, *self._shape)
        self._packing.keep_states(key, value)
        states = [prefix.layers[call] for prefix in self._prefixes]
        addresses = [number for key, value in states for number in (key.data_ptr(), value.data_ptr(), key.stride(0))]
        attended_TD = qkv_TD.new_empty(len(qkv_TD), heads * head_size)
        self._kernels.eoseek_attend(
            qkv_TD.data_ptr(),
            self._texts.data_ptr(),
            (ctypes.c_int64 * len(addresses))(*addresses),
            self._packed.data_ptr(),
            self._scales.data_ptr(),
            attended_TD.data_ptr(),
            len(self._texts),
            self._num_blocks,
            heads,
            key_heads,
            head_size,
            layer.scaling,
        )
        return attended_TD


class _Layer:
    def __init__(self, layer: nn.Module, product: Callable[..., Product]) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.attention: nn.Module = attention
        self.scaling: float = attention.scaling
        self.attention_norm = _norm_weight(layer.input_layernorm)
        self.mlp_norm = _norm_weight(layer.post_attention_layernorm)
        self.query_norm, self.key_norm = (_norm_weight(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
        self.qkv = product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = product(attention.o_proj)
        self.gate_up = product(mlp.gate_proj, mlp.up_proj)
        self.down = product(mlp.down_proj)


class FusedDecoder:
    """The forward of a decoder with RMS norms, rotary positions and a SiLU gate, from token ids to last states."""

    def __init__(self, model: Model, kernels: ctypes.CDLL, *, in_integers: bool) -> None:
        """Pack the weights of a model for which `of` gives one; float32 passes between products in integers."""
        config: Any = model.config
        self._model: Any = model
        self._kernels = kernels
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._gate_size: int = config.intermediate_size
        self._eps: float = config.rms_norm_eps
        self._is_whole = in_integers
        self._min_rows = 1 if self._is_whole else MIN_ROWS
        product: Callable[..., Product] = functools.partial(_IntegerProduct, kernels) if self._is_whole else _Product
        with torch.inference_mode():
            self._layers = [_Layer(layer, product) for layer in model.get_submodule("layers").children()]

    @classmethod
    def of(cls, model: Model, *, in_integers: bool = False) -> "FusedDecoder | None":
        """The fused form of a model, None where there is none for its family, number format or machine.

        Args:
            model: in bfloat16 or, with `in_integers`, in float32.
            in_integers: products in 16-bit integers.
        """
        has_products = has_integer_products() if in_integers else _has_products()
        kernels = load_kernels() if has_products and _is_supported(model, in_integers) else None
        return None if kernels is None else cls(model, kernels, in_integers=in_integers)

    def __call__(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        prefixes: Sequence[Prefix | None] | None = None,
        keep: Mapping[int, Prefix] | None = None,
        before_layer: Callable[[], None] | None = None,
    ) -> Tensor:
        """State of each text's last token.

        Args:
            token_ids: non-empty sequences, without their prefix; sorted by length they cost least.
            prefixes: as in `Packing.of`.
            keep: as in `Packing.of`.
            before_layer: called before each layer; may wait.
        Returns:
            (N, D) in float32, in order.
        """
        num_texts = len(token_ids)
        if (num_missing := self._min_rows - sum(map(len, token_ids))) > 0:
            token_ids = [*token_ids, [token_ids[-1][0]] * num_missing]
            prefixes = prefixes and [*prefixes, None]
        lengths = [len(ids) for ids in token_ids]
        shape = (self._heads, self._key_heads, self._head_size)
        plan = functools.partial(Packing.of, lengths, prefixes=prefixes, keep=keep, is_padded=False)
        attend: Callable[[Tensor, _Layer], Tensor]
        if self._is_whole:
            packing = plan()
            attend = _IntegerAttention(self._kernels, packing, *shape)
        else:
            packing = plan(multiple=_MULTIPLE)
            attend = functools.partial(_attend, packing=packing, shape=shape)
        row_T = torch.tensor([i for ids in token_ids for i in ids])
        ends_N = torch.tensor(lengths[:num_texts]).cumsum(0) - 1
        stream_TD: Tensor = self._model.embed_tokens(row_T).float()
        angles = self._model.rotary_emb(stream_TD, packing.position_ids_1T)
        # both halves of a head turn by the same angles
        cosine_TD, sine_TD = (each[0, :, : self._head_size // 2].float().contiguous() for each in angles)
        change_TD: Tensor | None = None
        for layer in self._layers:
            if before_layer is not None:
                before_layer()
            qkv_TD = layer.qkv(self._add_norm(stream_TD, change_TD, layer.attention_norm))
            self._rotate(qkv_TD, cosine_TD, sine_TD, layer)
            attended_TD = attend(qkv_TD, layer)
            if layer is self._layers[-1]:
                ends_N = torch.cat([ends_N, ends_N[-1].repeat(max(0, self._min_rows - num_texts))])
                stream_TD, attended_TD = stream_TD[ends_N], attended_TD[ends_N]
            gate_up_TD = layer.gate_up(self._add_norm(stream_TD, layer.out(attended_TD), layer.mlp_norm))
            change_TD = layer.down(self._gate(gate_up_TD))
        assert change_TD is not None, "a decoder has layers"
        last_ND: Tensor = self._model.norm((stream_TD + change_TD)[:num_texts])
        return last_ND

    def _add_norm(self, stream_TD: Tensor, change_TD: Tensor | None, weight_D: Tensor) -> Tensor:
        """Adds the change to the stream, in place, and gives its norm."""
        normed_TD = torch.empty_like(stream_TD, dtype=torch.float32 if self._is_whole else torch.bfloat16)
        self._kernels.eoseek_add_norm(
            stream_TD.data_ptr(),
            None if change_TD is None else change_TD.data_ptr(),
            weight_D.data_ptr(),
            self._eps,
            normed_TD.data_ptr(),
            *stream_TD.shape,
            self._is_whole,
        )
        return normed_TD

    def _rotate(self, qkv_TD: Tensor, cosine_TD: Tensor, sine_TD: Tensor, layer: _Layer) -> None:
        """Normalise, where the family does, and rotate the heads of queries and keys, in place."""
        rows, stride = qkv_TD.shape
        angles = (cosine_TD.data_ptr(), sine_TD.data_ptr())
        half = self._head_size // 2
        if layer.query_norm is None or layer.key_norm is None:
            num_heads = self._heads + self._key_heads
            self._kernels.eoseek_rotate(
                qkv_TD.data_ptr(), *angles, None, 0.0, rows, stride, num_heads, half, self._is_whole
            )
            return
        after_query = qkv_TD.data_ptr() + self._heads * self._head_size * qkv_TD.element_size()
        for start, weight, num_heads in (
            (qkv_TD.data_ptr(), layer.query_norm, self._heads),
            (after_query, layer.key_norm, self._key_heads),
        ):
            self._kernels.eoseek_rotate(
                start, *angles, weight.data_ptr(), self._eps, rows, stride, num_heads, half, self._is_whole
            )

    def _gate(self, gate_up_TD: Tensor) -> Tensor:
        gated_TD = gate_up_TD.new_empty(len(gate_up_TD), self._gate_size)
        self._kernels.eoseek_gate(gate_up_TD.data_ptr(), gated_TD.data_ptr(), *gated_TD.shape, self._is_whole)
        return gated_TD


def _split_heads(qkv_TD: Tensor, heads: int, key_heads: int, head_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (1, heads, T, size of a head) each, as views."""
    heads_1HTD = qkv_TD.view(len(qkv_TD), -1, head_size).transpose(0, 1).unsqueeze(0)
    query, key, value = heads_1HTD.tensor_split((heads, heads + key_heads), dim=1)
    return query, key, value


def _attend(qkv_TD: Tensor, layer: _Layer, *, packing: Packing, shape: tuple[int, int, int]) -> Tensor:
    """As `_IntegerAttention`, beside products in bfloat16."""
    states = _split_heads(qkv_TD, *shape)
    attended, _ = packed_attention(
        layer.attention, *states, None, packing=packing, scaling=layer.scaling, is_causal=True
    )
    return attended.reshape(len(qkv_TD), -1)


def _has_products() -> bool:
    return (
        platform.machine() in {"x86_64", "AMD64"}
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _is_supported(model: Model, in_integers: bool) -> bool:
    """Whether this is our own or transformers' code of a family, without what the fused layers do not do."""
    dtype = torch.float32 if in_integers else torch.bfloat16
    config: Any = model.config
    if not (is_packed_only(model) or type(model).__module__.startswith("transformers.models.")):
        return False
    if config.model_type not in DECODER_FAMILIES:
        return False
    if model.device.type != "cpu" or config.hidden_act != "silu" or getattr(config, "sliding_window", None):
        return False
    layers = model.get_submodule("layers")
    # adapters and quantized layers are of other classes
    products = [each for name, each in layers.named_modules() if name.endswith("_proj")]
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if in_integers and not _has_integer_attention(heads, key_heads, head_size):
        return False
    rotated = 2 * len(model.get_buffer("rotary_emb.inv_freq"))
    return rotated == head_size and all(
        type(each) is nn.Linear
        and each.weight.dtype == dtype
        # of a tile of integers; no checkpoint was seen to have other sizes
        and not (in_integers and any(size % 16 for size in each.weight.shape))
        for each in products
    )


def _has_integer_attention(heads: int, key_heads: int, head_size: int) -> bool:
    kernels = load_kernels()
    assert kernels is not None
    columns, largest, rows = (
        _constant(kernels, name) for name in ("product_columns", "attention_max_size", "attention_max_rows")
    )
    return head_size % columns == 0 and head_size <= largest and heads % key_heads == 0 and heads <= rows * key_heads


def _norm_weight(norm: Any) -> Any:
    return None if norm is None else norm.weight.detach().float().contiguous()
