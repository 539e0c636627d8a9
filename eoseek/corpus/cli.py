"""The command `eoseek encode-corpus`: parse, build, call. The root command line mounts it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eoseek.terminal import note
from service.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command("encode-corpus")
def encode_corpus(
    files: Annotated[
        list[Path],
        typer.Argument(help="`.jsonl`, `.jsonl.gz` or `.parquet` with `_id` or `id`, `text`, and `title` if there is."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for Parquet files of `id`, `embedding`, `truncated`.")],
    checkpoint: Annotated[str, typer.Option(help="`default`, a directory, or a hub name.")] = "default",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or Ray (extra `ray`).")] = "local",
    actors: Annotated[int | None, typer.Option(min=1, help="Of Ray: processes that encode. Default: 1.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="Of Ray: GPUs of an actor. Default: 0.")] = None,
    backend: Annotated[Literal["torch", "vllm"], typer.Option(help="Which engine encodes.")] = "torch",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic.")] = "auto",
    device: Annotated[
        str, typer.Option(help="Of torch: `cpu`, `cuda`; `auto` takes CUDA where there is one.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of a process. Default: one a core; of an actor 1.")
    ] = 0,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a text. Default: the checkpoint's.")] = None,
    truncate: Annotated[bool, typer.Option(help="Cut longer texts instead of refusing them.")] = False,
    part_size: Annotated[
        int, typer.Option(min=1, help="Documents of an output file, which is what an interruption costs.")
    ] = 1024,
) -> None:
    """Embed a corpus into Parquet files; the same command goes on after an interruption."""
    from eoseek.corpus.engines import Cluster
    from eoseek.corpus.run import CorpusPlan
    from eoseek.corpus.run import encode_corpus as encode

    given = [name for name, value in (("--actors", actors), ("--gpus", gpus)) if value is not None]
    if engine == "local" and given:
        raise ConfigurationError(f"{' and '.join(given)}: for --engine ray only")
    for each in files:
        if not each.is_file():
            raise ConfigurationError(f"{each}: {'not a file' if each.exists() else 'no such file'}")
    if checkpoint == "default":
        from service.encoders.pull import pull

        pull(checkpoint, progress=note)
    plan = CorpusPlan(
        files=files,
        output=output,
        checkpoint=checkpoint,
        backend=backend,
        dtype=dtype,
        device=device,
        max_length=max_length,
        truncate=truncate,
        part_size=part_size,
        threads=threads or (1 if engine == "ray" else 0),
        cluster=Cluster(num_actors=actors or 1, gpus_per_actor=gpus or 0.0) if engine == "ray" else None,
    )
    try:
        note(encode(plan))
    except KeyboardInterrupt:
        note("interrupted; the same command continues")
        raise typer.Exit(130) from None
