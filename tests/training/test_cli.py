import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner, Result

from service.errors import ConfigurationError
from tests.training.conftest import toy_rows, write_lines
from training.cli import app
from training.config import TrainingConfig, config_as_dict
from training.data.teacher import TeacherVectors


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def recipe(tmp_path: Path, make_config: Callable[..., TrainingConfig]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config_as_dict(make_config(num_steps=2))))
    return path


def test_train_then_export_gives_a_checkpoint(tmp_path: Path, recipe: Path) -> None:
    trained = _run("train", recipe, "--set", "name=short", "--set", "tuning.rank=2")
    assert trained.stdout.strip() == str(tmp_path / "runs" / "short" / "checkpoint-2")
    exported = _run("export", tmp_path / "runs" / "short", "--output", tmp_path / "out")
    assert exported.exit_code == 0
    assert json.loads((tmp_path / "out" / "eoseek.json").read_text())["name"] == "short"


def test_train_resume_goes_on(tmp_path: Path, recipe: Path) -> None:
    _run("train", recipe)
    longer = _run("train", recipe, "--resume", "--set", "num_steps=4")
    assert longer.stdout.strip().endswith("checkpoint-4")


def test_export_of_several_sources_is_their_average(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    _run("train", recipe)
    _run("export", tmp_path / "runs" / "toy", tiny_base, "--weight", 3, "--weight", 1, "--output", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "eoseek.json").read_text())
    assert card["training"]["average"] == [0.75, 0.25]


def test_export_adapter_says_what_it_keeps(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    _run("train", recipe)
    arguments = ("--adapter-rank", 4, "--base", tiny_base, "--output", tmp_path / "adapter")
    exported = _run("export", tmp_path / "runs" / "toy", *arguments)
    assert "of the difference's squared norm" in exported.stderr
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--output names the directory"),
        (("--output", "x", "--weight", 1, "--weight", 2), "2 --weight for 1 sources"),
        (("--output", "x", "--adapter-rank", 4, "--verify"), "reads a whole checkpoint"),
        (("--output", "x", "--slerp", 0.5, "--weight", 1), "give one of them"),
    ],
)
def test_export_contradictions_are_refused(tiny_base: Path, arguments: tuple[object, ...], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        _run("export", tiny_base, *arguments)


def test_train_override_without_value_is_refused(recipe: Path) -> None:
    with pytest.raises(ConfigurationError, match="give NAME=VALUE"):
        _run("train", recipe, "--set", "num_steps")


def test_mine_writes_negatives_and_says_what_was_dropped(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "toy.jsonl", toy_rows())
    mined = _run("mine", data, "--output", tmp_path / "mined.jsonl", "--num-negatives", 2)
    assert "negatives for 40 queries" in mined.stderr
    assert "dropped: " in mined.stderr
    assert len((tmp_path / "mined.jsonl").read_text().splitlines()) == 40


def test_teach_writes_vectors_of_every_text(tmp_path: Path, recipe: Path, tiny_base: Path) -> None:
    taught = _run("teach", recipe, "--teacher", tiny_base, "--output", tmp_path / "teacher")
    assert taught.exit_code == 0
    vectors = TeacherVectors(tmp_path / "teacher")
    assert vectors.queries([row["query"] for row in toy_rows()]).shape == (40, 32)


@pytest.mark.parametrize("command", ["export", "teach"])
def test_output_that_holds_something_else_is_not_replaced(
    tmp_path: Path, recipe: Path, tiny_base: Path, command: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    given = {"export": (tiny_base,), "teach": (recipe, "--teacher", tiny_base)}[command]
    with pytest.raises(ConfigurationError, match="so it is not replaced"):
        _run(command, *given, "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_export_replaces_what_it_wrote(tmp_path: Path, tiny_base: Path) -> None:
    for _ in range(2):
        assert _run("export", tiny_base, "--output", tmp_path / "out").exit_code == 0


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], list[str]]]:
    """Starts a hub that gives these answers by method and path, 401 to all others; the calls that it got."""
    calls: list[str] = []
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            calls.append(f"{self.command} {self.path}")
            found = answers.get(calls[-1])
            body = json.dumps(found or {"error": "Invalid username or password."}).encode()
            self.send_response(200 if found else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def start(given: dict[str, Any]) -> list[str]:
            answers.update(given)
            return calls

        yield start
        server.shutdown()


CREATED = {"POST /api/repos/create": {"url": "https://huggingface.co/we/mine"}}


@pytest.mark.parametrize(
    ("repository", "answers", "reason"),
    [
        ("we/mine", {}, "401"),
        ("no such name", {}, "'no such name'"),
        ("mine", CREATED, "401"),  # it is there, and may not be written to
    ],
)
def test_export_push_that_is_refused_is_told_before_the_work(
    tmp_path: Path,
    tiny_base: Path,
    hub: Callable[[dict[str, Any]], list[str]],
    repository: str,
    answers: dict[str, Any],
    reason: str,
) -> None:
    calls = hub(answers)
    with pytest.raises(ConfigurationError, match=f"--push {repository}: .*{reason}.*hf auth login"):
        _run("export", tiny_base, "--output", tmp_path / "out", "--push", repository)
    assert not (tmp_path / "out").exists()
    assert not answers or calls[-1].startswith("GET /api/models/we/mine/auth-check")


def test_export_push_without_a_hub_is_one_line(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(ConfigurationError, match=r"^--push we/mine: .*HF_ENDPOINT$"):
        _run("export", tiny_base, "--output", tmp_path / "out", "--push", "we/mine")


def test_export_push_uploads_what_was_written_to_the_name_that_the_hub_gave(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class FakeHub:
        commit_url = "commit 1"
        repo_id = "we/mine"

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> "FakeHub":
            calls.append(("create", repository, private, exist_ok))
            return self

        def auth_check(self, repository: str, *, write: bool) -> None:
            calls.append(("check", repository, write))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> "FakeHub":
            calls.append(("upload", repo_id, sorted(each.name for each in folder_path.iterdir())))
            return self

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    exported = _run("export", tiny_base, "--output", tmp_path / "out", "--push", "mine")
    assert "uploaded to commit 1" in exported.stderr
    assert calls == [
        ("create", "mine", True, True),
        ("check", "we/mine", True),
        ("upload", "we/mine", sorted(each.name for each in (tmp_path / "out").iterdir())),
    ]
