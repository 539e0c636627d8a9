"""The command line: parse, build, call, exit code.

Data goes to stdout, progress and notes to stderr. Exit code 2 means that what was asked for is wrong (a setting, an
option, a file that is not there), 1 that work failed on the way. Heavy imports are inside the commands, for `--help`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.errors import ConfigurationError, EoseekError
from training.cli import app as training_app

if TYPE_CHECKING:
    from eoseek.client import Client, Hit
    from eoseek.evaluation import Evaluation
    from eoseek.ingest import IngestOptions
    from eoseek.loading import Loading
    from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dense retrieval with decoder LLMs pooled at their closing [EOS] token.",
)
model_app = typer.Typer(no_args_is_help=True, help="Checkpoints on this machine.")
app.add_typer(model_app, name="model")
app.add_typer(training_app)

Url = Annotated[str, typer.Option(envvar="EOSEEK_URL", help="Where the service listens.")]
Collection = Annotated[str | None, typer.Option(help="Default: the service's own default collection.")]
Instruction = Annotated[str | None, typer.Option(help="The task in a sentence; default: the checkpoint's; '': none.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Documents in one request.")]
Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")]
Truncate = Annotated[bool, typer.Option(help="Cut texts over the model's length instead of refusing them.")]
_URL = "http://127.0.0.1:8080"
_INGEST_RETRY_SECONDS = 120.0


def main() -> None:
    """Runs the command line; known failures end in one line and an exit code, never in a traceback."""
    try:
        app()
    except Exception as error:
        from eoseek.client import EoseekClientError
        from eoseek.ingest import UnreadableError

        if not isinstance(error, EoseekError | EoseekClientError | UnreadableError):
            raise
        is_configuration = getattr(error, "code", None) == ConfigurationError.code
        _note(f"eoseek: {error}")
        sys.exit(2 if is_configuration else 1)


@app.command()
def serve(demo: Annotated[bool, typer.Option("--demo", help="Also index the demo collection.")] = False) -> None:
    """Start the service; everything is set by EOSEEK_* variables."""
    settings = _settings()
    if settings.encoder.checkpoint == "default":
        _pull("default")
    from eoseek.companion import DemoCompanion
    from service.app import run

    companion = DemoCompanion()

    def on_ready(url: str) -> None:
        _note(f"EOSeek is ready on {url}, its documentation on {url}/docs")
        if demo:
            companion.start(url)

    try:
        code = run(settings, on_ready=on_ready)
    finally:
        companion.stop()
    raise typer.Exit(code)


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(help="`.jsonl` or `.jsonl.gz`, BEIR or plain; - is stdin.")],
    collection: Annotated[
        str | None, typer.Option(help="Created if it is not there. Default: the service's own default collection.")
    ] = None,
    url: Url = _URL,
    batch_size: BatchSize = 32,
    concurrency: Concurrency = 4,
    truncate: Truncate = False,
    resume: Annotated[bool, typer.Option(help="Continue where an interrupted run of this file stopped.")] = True,
) -> None:
    """Load documents, one JSON object a line."""
    from eoseek.ingest import IngestOptions

    paths = [None if name == "-" else _file(Path(name)) for name in files]
    options = IngestOptions(collection=collection, batch_size=batch_size, concurrency=concurrency, truncate=truncate)
    _load(url, options, lambda loading: loading.load_files(paths), is_resumable=resume)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Collection = None,
    instruction: Instruction = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    filter: Annotated[str | None, typer.Option(help="Qdrant's filter JSON.")] = None,
    url: Url = _URL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Search a collection."""
    conditions = _json_object(filter) if filter else None
    with _client(url) as client:
        hits = client.search(text, collection=collection, instruction=instruction, top_k=top_k, filter=conditions)
    _print_json_lines(hits) if as_json else _print_hits(hits)


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Without any: one a line from stdin.")] = None,
    kind: Annotated[Literal["query", "document"], typer.Option(help="Queries get the instruction.")] = "query",
    instruction: Instruction = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Keep so many leading dimensions.")] = None,
    truncate: Truncate = False,
    url: Url = _URL,
) -> None:
    """Embed texts; prints one JSON object a line."""
    lines = iter(texts) if texts else (line.rstrip("\r\n") for line in sys.stdin)
    with _client(url) as client:
        while batch := list(islice(lines, 64)):
            answer = client.embed(batch, kind=kind, instruction=instruction, dimensions=dimensions, truncate=truncate)
            for index, (text, embedding) in enumerate(zip(batch, answer.embeddings, strict=True)):
                row = {"text": text, "embedding": embedding, "truncated": index in answer.truncated}
                print(json.dumps(row, ensure_ascii=False))


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="A folder in BEIR's layout.")],
    url: Url = _URL,
    split: Annotated[str, typer.Option(help="Which judgements: qrels/<split>.tsv.")] = "test",
    collection: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    instruction: Instruction = None,
    top_k: Annotated[int, typer.Option(min=1, help="Depth of the run.")] = 100,
    load: Annotated[bool, typer.Option("--ingest", help="Load the corpus first.")] = False,
    truncate: Truncate = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write metrics, per query too.")] = None,
    run_file: Annotated[Path | None, typer.Option("--run", help="Write the TREC run.")] = None,
) -> None:
    """Judge a running service on a data set: nDCG@10, MRR@10, Recall@100."""
    from eoseek.evaluation import evaluate_service
    from eoseek.ingest import IngestOptions
    from training.evaluation import beir, runs

    with _readable_data():
        corpus, queries, qrels = beir.corpus_path(data), beir.read_queries(data), beir.read_qrels(data, split)
    name = collection or data.resolve().name
    if load:
        _load(url, IngestOptions(collection=name, truncate=truncate), lambda loading: loading.load_files([corpus]))
    with _client(url, retry_seconds=_INGEST_RETRY_SECONDS) as client:
        result = evaluate_service(
            client, queries, qrels, collection=name, top_k=top_k, instruction=instruction, truncate=truncate
        )
    if run_file:
        runs.write_run(result.run, run_file, tag="eoseek")
    if json_file:
        json_file.write_text(json.dumps({"data": name, "split": split, **result.as_json()}, indent=1) + "\n")
    _print_evaluation(result)


@app.command()
def demo(
    collection: Annotated[str, typer.Option(help="Created if it is not there.")] = "demo", url: Url = _URL
) -> None:
    """Index the docstrings of this Python's standard library."""
    from eoseek.demo import EXAMPLE_QUERY
    from eoseek.ingest import IngestOptions

    _load(url, IngestOptions(collection=collection), lambda loading: loading.load_demo())
    body = json.dumps({"query": EXAMPLE_QUERY, "collection": collection, "top_k": 3})
    at = "" if url == _URL else f" --url {url}"
    _note(
        f"Try:  eoseek search '{EXAMPLE_QUERY}' --collection {collection}{at}\n"
        f"  or  curl -s {url}/search -H 'Content-Type: application/json' -d '{body}'"
    )


@model_app.command()
def pull(name: Annotated[str, typer.Argument(help="`default`, or a hub name.")] = "default") -> None:
    """Fetch a checkpoint into the cache and print its path; does nothing when it is there."""
    print(_pull(name))


def _settings() -> "Settings":
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        places = [
            f"EOSEEK_{'__'.join(map(str, each['loc'])).upper()}={each['input']!r}: {each['msg']}"
            for each in error.errors()
        ]
        raise ConfigurationError("; ".join(places)) from error
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error


def _client(url: str, *, retry_seconds: float = 30.0) -> "Client":
    from eoseek.client import Client

    return Client(url, retry_seconds=retry_seconds)


def _load(
    url: str,
    options: "IngestOptions",
    work: "Callable[[Loading], None]",
    *,
    is_resumable: bool = True,
) -> None:
    """Does `work` and says what came of it, however it ends; exit code 1 if a document was not indexed."""
    from eoseek.loading import Loading

    started = time.monotonic()
    with _client(url, retry_seconds=_INGEST_RETRY_SECONDS) as client:
        loading = Loading(client, options, is_resumable=is_resumable)
        try:
            work(loading)
        except KeyboardInterrupt:
            _note("interrupted; the same command continues")
            raise typer.Exit(130) from None
        finally:
            _note(loading.summary(time.monotonic() - started))
    if loading.counts.failed:
        raise typer.Exit(1)


def _pull(name: str) -> Path:
    from service.encoders.pull import pull as pull_checkpoint

    return pull_checkpoint(name, progress=_note)


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{path}: not readable")
    return path


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--filter is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f'--filter must be a JSON object such as {{"must": [...]}}, not {text}')
    return value


@contextmanager
def _readable_data() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json_lines(hits: "list[Hit]") -> None:
    from dataclasses import asdict

    for hit in hits:
        print(json.dumps(asdict(hit), ensure_ascii=False))


def _print_hits(hits: "list[Hit]") -> None:
    width = len(str(len(hits)))
    for rank, hit in enumerate(hits, start=1):
        first_line = next(iter(hit.text.strip().splitlines()), "")
        title = f"  {hit.title}" if hit.title and hit.title != hit.id else ""
        print(_printable(f"{rank:{width}}  {hit.score:.4f}  {hit.id}{title}"))
        if first_line:
            print(_printable(f"{'':{width}}          {first_line[:160]}"))
    if not hits:
        _note("nothing found")


def _printable(text: str) -> str:
    """Stored texts may hold terminal control sequences; none reaches the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _print_evaluation(result: "Evaluation") -> None:
    names = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100"}
    for metric, value in result.metrics.items():
        print(f"{names[metric]:<11} {value:.4f}")
    _note(
        f"mean over {len(result.per_query):,} judged queries"
        + (f"; {result.num_missing_queries:,} of them have no text and count as 0" * bool(result.num_missing_queries))
        + (f"; {result.num_truncated_queries:,} were cut" * bool(result.num_truncated_queries))
    )
