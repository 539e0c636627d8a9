"""From a checkpoint's path to an encoder that has passed its trial: device, number format, memory, weights, probes."""

import logging
from typing import TYPE_CHECKING, cast

import torch

from service.encoders.checkpoint import T5_FAMILIES, Checkpoint, Digests, is_plain, load_served, weight_files
from service.encoders.decoder import read_decoder
from service.encoders.fused import has_integer_products
from service.encoders.memory import settle_memory
from service.encoders.packed import keep_norms_in_float32
from service.encoders.probes import check_probes
from service.encoders.torch_encoder import CPU_ROW_TOKENS, CUDA_ROW_TOKENS, TorchEncoder
from service.errors import ConfigurationError

if TYPE_CHECKING:  # imported where it is needed: it takes seconds
    from transformers import PreTrainedModel

    from service.encoders.packed import Model

log = logging.getLogger(__name__)


def choose_device(device: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """Of the weights: `auto` becomes bfloat16 where the hardware multiplies it (on AVX512-BF16 about 3x float32), else
    float32, as does `int16`."""
    if dtype == "int16":
        return torch.float32
    if dtype != "auto":
        return cast(torch.dtype, getattr(torch, dtype))
    if device != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


def choose_integers(dtype: str, device: str) -> bool:
    """Whether products are to be in 16-bit integers: `int16`, and `auto` on a processor whose widest format is AVX2.

    With AVX-512 float32 is multiplied as fast.
    Raises:
        ConfigurationError: `int16` where there is none.
    """
    if dtype == "int16" and not (device == "cpu" and has_integer_products()):
        raise ConfigurationError(
            "EOSEEK_ENCODER__DTYPE is int16, which needs a processor with AVX2 and EOSeek installed where there is a C "
            f"compiler; the device is {device}. Leave it to `auto`"
        )
    if dtype != "auto" or choose_dtype(dtype, device) != torch.float32:
        return dtype == "int16"
    return has_integer_products() and not torch.cpu.get_capabilities().get("avx512_f", False)


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: str, trust_remote_code: bool
) -> "PreTrainedModel":
    """The transformers model of a checkpoint, in evaluation mode.

    Raises:
        ConfigurationError: weights missing, corrupt, or not of this architecture.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.utils.logging import disable_progress_bar

    weight_files(checkpoint.path)
    # a bar for a second of loading, in the middle of a service's log
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=trust_remote_code)
        loader = AutoModelForTextEncoding if config.model_type in T5_FAMILIES else AutoModel
        model, report = loader.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise many kinds for broken files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ConfigurationError(f"checkpoint {checkpoint.path}: its weights cannot be loaded: {reason}") from error
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing or report["mismatched_keys"]:
        wrong = sorted(missing or map(str, report["mismatched_keys"]))
        raise ConfigurationError(
            f"checkpoint {checkpoint.path}: {len(wrong)} weights are missing or of another shape, {wrong[0]} first; "
            "they would be random"
        )
    if dtype == torch.bfloat16:
        keep_norms_in_float32(model)
    return cast("PreTrainedModel", model.to(device).eval())


def load_served_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: str, trust_remote_code: bool) -> "Model":
    """Our own `Decoder` where that is enough, else as `load_model`, which also says what is wrong with weights."""
    if is_plain(checkpoint.path):
        try:
            return read_decoder(checkpoint.path, dtype=dtype).to(device)
        except Exception as error:  # transformers names the cause, if it cannot read them either
            log.warning("%s: read by transformers, as its weights are not as expected: %s", checkpoint.name, error)
    return load_model(checkpoint, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def load_encoder(
    checkpoint_path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int = 0,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    fingerprint: str | None = None,
    digests: Digests | None = None,
    prefix_cache_tokens: int = 0,
) -> TorchEncoder:
    """Load a checkpoint and run the contract check.

    Args:
        checkpoint_path: as `load_checkpoint`.
        dtype: `auto`, `float32`, `bfloat16` or `int16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; 0 leaves torch's choice, one a core.
        max_length: as `load_checkpoint`.
        trust_remote_code: as `load_checkpoint`.
        fingerprint: what the caller's vectors belong to; None takes whatever is there.
        digests: of the checkpoint, as the caller has opened it.
        prefix_cache_tokens: as `TorchEncoder`.
    Raises:
        ConfigurationError: the checkpoint cannot be served; says why.
    """
    checkpoint = load_served(
        checkpoint_path,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        fingerprint=fingerprint,
        digests=digests,
    )
    if threads:
        torch.set_num_threads(threads)
    device = choose_device(device)
    in_integers = choose_integers(dtype, device)
    if device == "cpu":
        settle_memory()
    model = load_served_model(
        checkpoint, dtype=choose_dtype(dtype, device), device=device, trust_remote_code=trust_remote_code
    )
    encoder = TorchEncoder(
        model,
        pooling=checkpoint.pooling,
        dimension=checkpoint.dimension,
        row_tokens=CPU_ROW_TOKENS if device == "cpu" else CUDA_ROW_TOKENS,
        prefix_cache_tokens=prefix_cache_tokens,
        in_integers=in_integers,
    )
    if dtype == "int16" and encoder.dtype != dtype:
        log.warning("%s: no products in int16 for its family, sizes or pooling, so float32", checkpoint.name)
    probes = [("", "a"), ("", "two words and a few more of them"), ("A title", "a sentence, then another one. " * 3)]
    encoder.check(checkpoint.contract.documents(probes, truncate=True).token_ids)
    try:
        check_probes(encoder, checkpoint.contract, checkpoint.probes)
    except ConfigurationError as error:
        raise ConfigurationError(f"checkpoint {checkpoint.path}: {error.detail}") from error
    return encoder
