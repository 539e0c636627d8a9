"""The command line: parse, build, call, exit code.

Data goes to stdout, progress and notes to stderr. Exit code 2 means that what was asked for is wrong (a setting, an
option, a file that is not there), 1 that work failed on the way. Heavy imports are inside the commands, for `--help`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eoseek.corpus.cli import app as corpus_app
from eoseek.options import (
    URL,
    ApiKey,
    BatchSize,
    Collection,
    Concurrency,
    Instruction,
    Truncate,
    Url,
    json_object,
    read_settings,
    readable_file,
    stdin_lines,
)
from eoseek.terminal import WaitNotes, note, print_hits, print_json_lines
from service.errors import ConfigurationError, EoseekError
from training.cli import app as training_app

if TYPE_CHECKING:
    from eoseek.client import Client
    from eoseek.evaluation import EvaluationPlan
    from eoseek.ingest import IngestOptions
    from eoseek.loading import Loading
    from training.evaluation.beir import JudgedSet

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dense retrieval with decoder LLMs pooled at their closing [EOS] token.",
)
model_app = typer.Typer(no_args_is_help=True, help="Checkpoints on this machine.")
app.add_typer(model_app, name="model")
app.add_typer(corpus_app)
app.add_typer(training_app)


_INGEST_RETRY_SECONDS = 600.0  # some attempts, also where each takes the service's 120 s
_MAX_NAMES = 20


def main() -> None:
    """Runs the command line; known failures end in one line and an exit code, never in a traceback."""
    try:
        app()
    except Exception as error:
        from eoseek.client import EoseekClientError
        from eoseek.lines import UnreadableError

        if not isinstance(error, EoseekError | EoseekClientError | UnreadableError):
            raise
        is_configuration = getattr(error, "code", None) == ConfigurationError.code
        note(f"eoseek: {error}")
        sys.exit(2 if is_configuration else 1)


@app.command()
def serve(demo: Annotated[bool, typer.Option("--demo", help="Also index the demo collection.")] = False) -> None:
    """Start the service; everything is set by EOSEEK_* variables."""
    settings = read_settings()
    if settings.encoder.checkpoint == "default":
        from service.encoders.pull import build

        build("default", progress=note)
    from service.encoders.worker import load_early

    checkpoint = load_early(settings.encoder, settings.log_format)
    from eoseek.companion import DemoCompanion
    from service.app import run

    companion = DemoCompanion()

    def on_ready(url: str) -> None:
        note(f"EOSeek is ready on {url}, its documentation on {url}/docs")
        if demo:
            companion.start(url)

    try:
        code = run(settings, checkpoint=checkpoint, on_ready=on_ready, on_stop=companion.interrupt)
    finally:
        companion.stop()
    raise typer.Exit(code)


@app.command()
def settings() -> None:
    """Print the settings in effect, keys hidden; a default is commented out."""
    from eoseek.reference import settings_in_effect

    for line in settings_in_effect(read_settings()):
        print(line)


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(help="`.jsonl` or `.jsonl.gz`, BEIR or plain; - is stdin.")],
    collection: Annotated[
        str | None, typer.Option(help="Created if it is not there. Default: the service's own default collection.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    batch_size: BatchSize = 32,
    concurrency: Concurrency = 4,
    truncate: Truncate = False,
    resume: Annotated[bool, typer.Option(help="Continue where an interrupted run of this file stopped.")] = True,
) -> None:
    """Load documents, one JSON object a line."""
    from eoseek.ingest import IngestOptions

    paths = [None if name == "-" else readable_file(Path(name)) for name in files]
    options = IngestOptions(collection=collection, batch_size=batch_size, concurrency=concurrency, truncate=truncate)
    _load(url, api_key, options, lambda loading: loading.load_files(paths), is_resumable=resume)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Collection = None,
    instruction: Instruction = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    filter: Annotated[str | None, typer.Option(help="Qdrant's filter JSON.")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Search a collection."""
    if not text:
        raise ConfigurationError("the query is empty; write what to look for: eoseek search 'merge two sorted lists'")
    conditions = json_object(filter) if filter else None
    with _client(url, api_key) as client, _naming_collections(client):
        hits = client.search(text, collection=collection, instruction=instruction, top_k=top_k, filter=conditions)
    print_json_lines(hits) if as_json else print_hits(hits)


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Without any: one a line from stdin.")] = None,
    kind: Annotated[Literal["query", "document"], typer.Option(help="Queries get the instruction.")] = "query",
    instruction: Instruction = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Keep so many leading dimensions.")] = None,
    truncate: Truncate = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Embed texts; prints one JSON object a line."""
    lines = iter(texts) if texts else stdin_lines()
    with _client(url, api_key) as client:
        while batch := list(islice(lines, 64)):
            answer = client.embed(batch, kind=kind, instruction=instruction, dimensions=dimensions, truncate=truncate)
            for index, (text, embedding) in enumerate(zip(batch, answer.embeddings, strict=True)):
                row = {"text": text, "embedding": embedding, "truncated": index in answer.truncated}
                print(json.dumps(row, ensure_ascii=False))


@app.command()
def evaluate(
    context: typer.Context,
    data: Annotated[list[Path], typer.Option(help="A folder in BEIR's layout, repeatable.")],
    checkpoints: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", help="Encode offline by this directory, NAME=DIRECTORY or hub name, repeatable."),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="BM25 in the same table: English stop words and stems.")] = False,
    url: Annotated[
        str,
        typer.Option(
            envvar="EOSEEK_URL", help="The service that is judged where there is neither --checkpoint nor --bm25."
        ),
    ] = URL,
    api_key: ApiKey = None,
    split: Annotated[str | None, typer.Option(help="qrels/<split>.tsv; default: test, or the only one.")] = None,
    collection: Annotated[str | None, typer.Option(help="Of the service. Default: the folder's name.")] = None,
    instruction: Instruction = None,
    own_instructions: Annotated[
        bool, typer.Option(help="Let the instruction that a query brings go before --instruction.")
    ] = True,
    top_k: Annotated[int | None, typer.Option(min=1, help="Depth of the run. Default: 1000; of a service 100.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Cut texts of a --checkpoint at so many tokens.")
    ] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "int16"], typer.Option(help="Of a --checkpoint.")] = "auto",
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for a --checkpoint's embeddings of documents, to go on after a break or ask again."),
    ] = None,
    load: Annotated[bool, typer.Option("--ingest", help="Load the corpus into the service first.")] = False,
    truncate: Annotated[
        bool, typer.Option(help="Let a service cut texts over its length; offline they always are.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write metrics, per query too.")] = None,
    run_file: Annotated[Path | None, typer.Option("--run", help="Write the TREC run of one set and system.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for SET.SYSTEM.run and SET.SYSTEM.jsonl, each query's metrics.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Only compare two such files, A and B, of one set.")
    ] = None,
) -> None:
    """Judge a service, checkpoints and BM25 on data sets, or compare two runs: nDCG@10, MRR@10, recall."""
    from eoseek import judging
    from eoseek.evaluation import EvaluationPlan

    if compare is not None:
        return judging.compare((readable_file(compare[0]), readable_file(compare[1])), data, split, json_file)
    source = context.get_parameter_source("url")
    is_url_given = source is not None and source.name == "COMMANDLINE"  # not by EOSEEK_URL
    plan = EvaluationPlan(
        checkpoints=checkpoints or [],
        uses_bm25=bm25,
        url=url if is_url_given or not (checkpoints or bm25) else None,
        api_key=api_key,
        collection=collection,
        instruction=instruction,
        uses_own_instructions=own_instructions,
        top_k=top_k,
        max_length=max_length,
        dtype=dtype,
        keep=keep,
        truncate=truncate,
    )
    sets = judging.judged_sets(data, split, plan)
    if run_file and len(sets) * len(plan.names) > 1:
        raise ConfigurationError("--run takes the run of one system on one set; --output writes all of them")
    for path in (json_file, run_file):
        if path and not path.absolute().parent.is_dir():  # before hours of work
            raise ConfigurationError(f"{path}: no such folder")
    if load:
        _load_sets(sets, plan)
    results = judging.judge_all(plan, sets, output)
    judging.write_results(results, json_file, run_file)


@app.command()
def demo(
    collection: Annotated[str, typer.Option(help="Created if it is not there.")] = "demo",
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Index the docstrings of this Python's standard library."""
    from eoseek.demo import EXAMPLE_QUERY
    from eoseek.ingest import IngestOptions

    _load(url, api_key, IngestOptions(collection=collection), lambda loading: loading.load_demo())
    body = json.dumps({"query": EXAMPLE_QUERY, "collection": collection, "top_k": 3})
    at = "" if url == URL else f" --url {url}"
    header = ' -H "Authorization: Bearer $EOSEEK_API_KEY"' if api_key else ""
    note(
        f"Try:  eoseek search '{EXAMPLE_QUERY}' --collection {collection}{at}\n"
        f"  or  curl -s {url}/search -H 'Content-Type: application/json'{header} -d '{body}'"
    )


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Replaced in one step where it is there.")],
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Save all collections of a running service's embedded store to a file."""
    from eoseek.backup import save

    with _client(url, api_key) as client:
        manifest = save(client, file)
    num_documents = sum(each.num_documents for each in manifest.collections)
    note(f"{file}: {len(manifest.collections)} collections, {num_documents:,} documents")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    any_checkpoint: Annotated[
        bool, typer.Option("--any-checkpoint", help="Also collections that the configured checkpoint cannot open.")
    ] = False,
) -> None:
    """Make the embedded store that EOSEEK_STORE__PATH names from a backup; it must not be there yet."""
    from eoseek.backup import restore as restore_store
    from service.encoders.checkpoint import load_checkpoint

    settings, fingerprint = read_settings(), None
    if settings.store.kind != "edge":
        raise ConfigurationError(f"EOSEEK_STORE__KIND={settings.store.kind}: a backup is restored to kind edge only")
    if not any_checkpoint:
        if settings.encoder.checkpoint == "default":
            _pull("default")
        fingerprint = load_checkpoint(
            settings.encoder.checkpoint, trust_remote_code=settings.encoder.trust_remote_code
        ).fingerprint
    for each in restore_store(readable_file(file), settings.store.path, fingerprint=fingerprint):
        note(f"collection {each.name}: {each.num_documents:,} documents")


@app.command()
def reindex(
    collection: Annotated[str, typer.Argument(help="A collection of the embedded store.")],
    action: Annotated[
        Literal["status", "start", "pause", "resume", "compare", "switch", "rollback", "abort", "drop"],
        typer.Argument(help="`drop` removes the old one after the switch, `abort` the new one before it."),
    ] = "status",
    checkpoint: Annotated[
        str | None, typer.Option(help="start: directory on the service's machine or hub name. Default: the configured.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="start, resume: part of the time for encoding; 0.5.")
    ] = None,
    truncate: Annotated[
        bool | None, typer.Option("--truncate/--no-truncate", help="start, resume: cut documents that are too long.")
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option("--query", help="compare, switch: measure on these instead of recent searches, repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when nothing is left to encode.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Encode a collection by another checkpoint while it serves, and switch; prints how it stands as JSON."""
    from eoseek.reindexing import wait_until_settled

    with _client(url, api_key) as client:
        if action == "status":
            state = client.describe_reindex(collection)
        else:
            state = client.reindex(
                collection, action, checkpoint=checkpoint, share=share, truncate=truncate, queries=queries or None
            )
        is_over = action in ("abort", "drop")
        if wait and not is_over:
            state = wait_until_settled(client, collection)
    print(json.dumps(state, ensure_ascii=False))
    if state["stage"] == "failed" and not is_over:
        raise typer.Exit(1)


@model_app.command()
def pull(name: Annotated[str, typer.Argument(help="`default`, its base, or a hub name.")] = "default") -> None:
    """Fetch a checkpoint into the cache and print its path; does nothing when it is there."""
    print(_pull(name))


def _client(url: str, api_key: str | None, *, retry_seconds: float = 30.0) -> "Client":
    from eoseek.client import Client

    return Client(url, api_key=api_key, retry_seconds=retry_seconds, on_wait=WaitNotes().tell)


@contextmanager
def _naming_collections(client: "Client") -> Iterator[None]:
    """Adds the collections that there are to the error for one that is not."""
    from eoseek.client import EoseekClientError

    try:
        yield
    except EoseekClientError as error:
        if error.code != "not_found":
            raise
        with suppress(EoseekClientError):  # a key may admit to fewer calls
            names = [each["name"] for each in client.list_collections()]
            shown = ", ".join(sorted(names)[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
            error.args = (f"{error.detail}; there is: {shown or 'none'}",)
        raise


def _load(
    url: str,
    api_key: str | None,
    options: "IngestOptions",
    work: "Callable[[Loading], None]",
    *,
    is_resumable: bool = True,
) -> None:
    """Does `work` and says what came of it, however it ends; exit code 1 if a document was not indexed."""
    from eoseek.loading import Loading

    started = time.monotonic()
    with _client(url, api_key, retry_seconds=_INGEST_RETRY_SECONDS) as client:
        loading = Loading(client, options, is_resumable=is_resumable)
        try:
            work(loading)
        except KeyboardInterrupt:
            note("interrupted; the same command continues")
            raise typer.Exit(130) from None
        finally:
            note(loading.summary(time.monotonic() - started))
    if loading.counts.failed:
        raise typer.Exit(1)


def _pull(name: str) -> Path:
    from service.encoders.pull import pull as pull_checkpoint

    return pull_checkpoint(name, progress=note)


def _load_sets(sets: "list[JudgedSet]", plan: "EvaluationPlan") -> None:
    from eoseek.ingest import IngestOptions
    from training.evaluation import beir

    if plan.url is None:
        raise ConfigurationError("--ingest loads a service; give its --url too, or leave --ingest out")
    for each in sets:
        options = IngestOptions(collection=plan.collection or each.name, truncate=plan.truncate)
        paths = [beir.corpus_path(each.folder)]
        _load(plan.url, plan.api_key, options, lambda loading, paths=paths: loading.load_files(paths))  # type: ignore[misc]
