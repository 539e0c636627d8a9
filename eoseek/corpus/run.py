"""The work of `eoseek encode-corpus`: look at the input, agree with the output, encode what is missing, count."""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eoseek.corpus.documents import Part
from eoseek.corpus.encoder import Job
from eoseek.corpus.engines import Cluster, encode_by_ray, encode_here
from eoseek.corpus.inputs import cut, describe, recognize, survey
from eoseek.corpus.output import Manifest, Output, Recipe
from eoseek.progress import EncodingBar
from service.encoders.checkpoint import Checkpoint, load_checkpoint
from service.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """What is asked for; `cluster` None encodes in this process."""

    files: Sequence[Path]
    output: Path
    checkpoint: str = "default"
    backend: str = "torch"
    dtype: str = "auto"
    device: str = "auto"
    max_length: int | None = None
    truncate: bool = False
    part_size: int = 1024
    threads: int = 0
    cluster: Cluster | None = None


def encode_corpus(plan: CorpusPlan) -> str:
    """Encode a corpus, or what an earlier run left of it.

    Returns:
        A closing line: documents, truncated, parts, seconds, rate.
    Raises:
        EoseekError, UnreadableError: says what to do; parts that are done stay.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError("pyarrow is not installed; this needs: pip install 'eoseek[corpus]'")
    checkpoint = load_checkpoint(plan.checkpoint, max_length=plan.max_length)
    output = Output(plan.output)
    started = time.monotonic()
    with output.locked():
        manifest = _agree(plan, checkpoint, output)
        parts = list(cut(manifest.inputs, part_size=manifest.recipe.part_size))
        missing = [part for part in parts if not output.is_done(part)]
        try:
            _encode(plan, manifest.recipe, missing, num_documents=sum(each.num_documents for each in parts))
            num_documents, num_truncated = output.count(len(parts))
        except OSError as error:
            raise ConfigurationError(f"{plan.output}: {error}; the same command goes on from there") from error
    seconds = time.monotonic() - started
    num_encoded = sum(each.num_documents for each in missing)
    earlier = f" ({num_documents - num_encoded:,} of them in an earlier run)" if num_encoded < num_documents else ""
    return (
        f"{plan.output}: {num_documents:,} documents{earlier}, {num_truncated:,} truncated, {len(parts):,} parts; "
        f"{seconds:.1f} s, {num_encoded / max(seconds, 1e-9):,.1f} documents/s"
    )


def _agree(plan: CorpusPlan, checkpoint: Checkpoint, output: Output) -> Manifest:
    """The manifest to work by, written. Raises ConfigurationError if the folder belongs to another recipe or input."""
    wanted = Recipe(
        fingerprint=checkpoint.fingerprint,
        backend=plan.backend,
        dtype=_dtype(plan),
        max_length=checkpoint.max_length,
        truncate=plan.truncate,
        part_size=plan.part_size,
    )
    begun = output.read_manifest()
    if begun is None:
        with EncodingBar("checking") as bar:
            inputs = survey(plan.files, progress=lambda done: bar.show(done, None))
        manifest = Manifest(checkpoint=checkpoint.name, dimension=checkpoint.dimension, recipe=wanted, inputs=inputs)
    else:
        recipe = output.continued(begun.recipe, wanted)
        known = recognize(plan.files, begun.inputs)
        if known is None:
            raise ConfigurationError(
                f"{plan.output} was begun with {', '.join(map(str, begun.inputs))}, and this is "
                f"{describe(plan.files)}; give another --output, or delete it"
            )
        manifest = replace(begun, recipe=recipe, inputs=known)
    if manifest != begun:
        output.write_manifest(manifest)
    return manifest


def _dtype(plan: CorpusPlan) -> str:
    """One number format for all processes: `auto` might differ between the machines of a cluster."""
    if plan.dtype != "auto":
        return plan.dtype
    if plan.backend == "vllm" or (plan.cluster is not None and plan.cluster.gpus_per_actor):
        return "bfloat16"
    from service.encoders.torch_loading import choose_device, choose_dtype

    return str(choose_dtype("auto", choose_device(plan.device))).removeprefix("torch.")


def _encode(plan: CorpusPlan, recipe: Recipe, missing: Sequence[Part], *, num_documents: int) -> None:
    if not missing:
        return
    directory = Path(plan.checkpoint).expanduser()
    job = Job(
        # a directory by its whole path, as actors may start elsewhere; a name is looked up on each machine
        checkpoint=str(directory.resolve()) if directory.is_dir() else plan.checkpoint,
        recipe=recipe,
        output=str(plan.output.resolve()),
        device=plan.device,
        threads=plan.threads,
    )
    done = num_documents - sum(each.num_documents for each in missing)
    with EncodingBar("encoding") as bar:
        bar.show(done, num_documents)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.show(done, num_documents)

        if plan.cluster is None:
            encode_here(job, missing, advance)
        else:
            encode_by_ray(job, missing, advance, cluster=plan.cluster)
