"""The training commands: parse, build, call. The root command line mounts them.

Progress goes to stderr; stdout holds the path or the numbers that a script would want.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Recipe = Annotated[Path, typer.Argument(help="A YAML file such as those in training/recipes.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE instead of the recipe's, repeatable.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the recipe's data is; default: the recipe's data_root.")]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
) -> None:
    """Tune a checkpoint by a recipe; prints the newest checkpoint of the run."""
    from training.config import load_config
    from training.run import end_processes
    from training.run import train as run

    config = load_config(recipe, _overrides(overrides, data_root))
    _prepare()
    print(run(config, resume=resume))
    end_processes()


@app.command()
def teach(
    recipe: Recipe,
    teacher: Annotated[str, typer.Option(help="A checkpoint: directory or hub name.")],
    output: Annotated[Path, typer.Option(help="Folder of the vectors: the recipe's distillation.vectors.")],
    overrides: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Write a teacher's vectors of all texts of a recipe, for distillation."""
    from training.config import load_config
    from training.teaching import teach as run

    config = load_config(recipe, _overrides(overrides, data_root))
    _prepare()
    output = _replaceable(output, "teacher.json")
    with _Bar("texts") as bar, _written(output):
        count = run(config, teacher, output, progress=bar.show)
    _note(f"{count:,} vectors of {teacher} in {output}")


@app.command()
def mine(
    data: Annotated[Path, typer.Argument(help="Training data: .jsonl, .jsonl.gz or a BEIR folder.")],
    output: Annotated[Path, typer.Option(help="Takes the data with negatives, .jsonl.")],
    teachers: Annotated[list[str] | None, typer.Option("--teacher", help="bm25 or a checkpoint, repeatable.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Searched too: a BEIR folder or .jsonl with text.")] = None,
    rescore: Annotated[str | None, typer.Option(help="A stronger checkpoint in whose scores margins are.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Of the queries; default: the checkpoint's.")] = None,
    range_min: Annotated[int, typer.Option(min=1, help="Best rank that is taken.")] = 1,
    range_max: Annotated[int, typer.Option(min=1, help="Worst rank that is taken.")] = 100,
    absolute_margin: Annotated[float | None, typer.Option(help="Keep if score < positive - margin.")] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="Keep if score < positive - |positive| * margin; 0 or less: any.")
    ] = 0.05,
    num_negatives: Annotated[int, typer.Option(min=1, help="Taken for a query.")] = 7,
    sampling_strategy: Annotated[Literal["top", "random"], typer.Option(help="The best, or any that pass.")] = "top",
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 17,
) -> None:
    """Find hard negatives for training data."""
    from training.mining import MiningConfig, mine_file

    config = MiningConfig(
        teachers=tuple(teachers or ["bm25"]),
        rescore=rescore,
        instruction=instruction,
        range_min=range_min,
        range_max=range_max,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin if relative_margin and relative_margin > 0 else None,
        num_negatives=num_negatives,
        sampling_strategy=sampling_strategy,
        seed=seed,
    )
    _prepare()
    with _Bar("mining") as bar, _written(output):
        report = mine_file(data, output, config, corpus=corpus, progress=bar.show)
    _note(report.summary())


@app.command()
def export(
    sources: Annotated[list[Path], typer.Argument(help="A run, one of its checkpoints, or an exported directory.")],
    output: Annotated[Path | None, typer.Option(help="The directory to write; none with --verify alone.")] = None,
    weights: Annotated[list[float] | None, typer.Option("--weight", help="Share of each source, repeatable.")] = None,
    slerp: Annotated[float | None, typer.Option(min=0, max=1, help="Turn two sources by so much.")] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Written precision.")] = "auto",
    adapter_rank: Annotated[int | None, typer.Option(min=1, help="Write an adapter of this rank instead.")] = None,
    base: Annotated[str, typer.Option(help="What the adapter is for.")] = "default",
    verify: Annotated[bool, typer.Option("--verify", help="Compare every reader's vectors.")] = False,
    pythons: Annotated[
        list[str] | None,
        typer.Option("--python", help="Interpreter with another sentence-transformers, or with vLLM, repeatable."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload to this hub repository, made private where there is none.")
    ] = None,
) -> None:
    """Write a tuned checkpoint; several sources are averaged."""
    from training import export as exporting

    if output is None and not (verify and len(sources) == 1):
        raise ConfigurationError("--output names the directory to write; without it only one directory can be verified")
    if weights is not None and len(weights) != len(sources):
        raise ConfigurationError(f"{len(weights)} --weight for {len(sources)} sources")
    if weights is not None and slerp is not None:
        raise ConfigurationError("--weight averages and --slerp turns; give one of them")
    if adapter_rank is not None and verify:
        raise ConfigurationError("--verify reads a whole checkpoint; export one beside the adapter")
    _prepare()
    if output is not None:
        output = _replaceable(output, "eoseek.json")
    if push is not None:
        with _hub(push) as hub:  # before the work, since names and tokens can be wrong
            push = hub.create_repo(push, private=True, exist_ok=True).repo_id
            hub.auth_check(push, write=True)
    if output is not None:
        tuned = [exporting.load_tuned_model(source) for source in sources]
        if slerp is not None:
            tuned = [exporting.slerp(tuned, share=slerp)]
        elif len(tuned) > 1:
            tuned = [exporting.average(tuned, weights=weights)]
        with _written(output):
            if adapter_rank is not None:
                kept = exporting.export_adapter(tuned[0], base, output, rank=adapter_rank)
                _note(f"the adapter keeps {kept:.2%} of the difference's squared norm")
            else:
                exporting.export(tuned[0], output, dtype=dtype)
    written = output or sources[0]
    if verify:
        for reader, cosine in exporting.verify(written, pythons=pythons or []).items():
            print(f"{cosine:.6f}  {reader}")
    if push is not None:
        with _hub(push) as hub:
            _note(f"uploaded to {hub.upload_folder(repo_id=push, folder_path=written).commit_url}")


@contextmanager
def _hub(repository: str) -> Iterator["HfApi"]:
    """A client; ConfigurationError in a line for what the hub refuses, and where it is not reached."""
    from huggingface_hub import HfApi

    try:
        yield HfApi()
    except Exception as error:  # which HTTP library it speaks by, and so what it raises, changed between its versions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(f"--push {repository}: {reason}; see `hf auth login` and HF_ENDPOINT") from error


def _overrides(given: list[str] | None, data_root: Path | None) -> dict[str, str]:
    overrides = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {each}: give NAME=VALUE")
        overrides[name] = value
    return overrides | ({"data_root": str(data_root)} if data_root is not None else {})


def _replaceable(output: Path, mark: str) -> Path:
    """The whole path of a folder to write; one that is there is removed, so it must be of the same kind."""
    output = output.expanduser().absolute()
    if output.exists() and not (output / mark).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigurationError(f"{output} is there and holds no {mark}, so it is not replaced; name another --output")
    return output


@contextmanager
def _written(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{output} could not be written: {error}") from error


def _prepare() -> None:
    """Asks for the extra where it is missing; one progress bar is enough, and transformers shows one for every load."""
    missing = [each for each in ("peft", "bm25s", "tensorboard") if importlib.util.find_spec(each) is None]
    if missing:
        raise ConfigurationError(f"{missing[0]} is not installed; training needs: pip install 'eoseek[train]'")
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class _Bar:
    """A progress bar on stderr whose total may change, as when a teacher embeds before queries are mined."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Set the bar to `done` of `total`."""
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total or done < self._bar.n:
            self.__exit__()
            self._bar = tqdm(total=total, desc=self._label, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
