"""The Dockerfile's steps without a container engine: in clean minimal roots of Debian, up to a search that is served.

    sudo python -m benchmarks.image [--target cpu] [--build-arg NAME=VALUE]... [--bind PATH]... [--folder DIR]

A stage on python:X is a root that debootstrap fills with Debian's Python (and make and a compiler, unless it is a slim
one); COPY, RUN, ENV, ARG, USER, WORKDIR and VOLUME do what the engine would do, each RUN in a mount namespace of its
own. Then the target's CMD is started as its user on loopback, its HEALTHCHECK is asked until it is content, a document
is added and found, and SIGTERM ends it. What is not tried: the real base images, the layers' caching, and the gpu
target's engine. `--bind` shows a path of this machine inside, as a mirror's configuration may need; variables of pip
and of proxies are handed through. Needs root, debootstrap and util-linux.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from benchmarks.running import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
SLIM = ("python3", "ca-certificates")
FULL = (*SLIM, "python3-venv", "python3-dev", "make", "gcc", "libc6-dev")
HANDED_THROUGH = re.compile(r"(PIP_|SSL_|REQUESTS_)\w+|(https?|no)_proxy", re.IGNORECASE)
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
READY_SECONDS = 600


@dataclass(frozen=True)
class Stage:
    """What is between two FROM lines: (instruction, rest of its line)."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A root, and what holds for the processes in it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0"
    directory: str = "/"
    health: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], type=Path, help="a file or folder shown inside")
    parser.add_argument("--folder", type=Path, help="for the roots, kept; default: one that goes")
    parser.add_argument("--suite", default="bookworm", help="Debian's name of the roots' release")
    chosen = parser.parse_args()
    given = dict(each.split("=", 1) for each in chosen.build_arg)
    with tempfile.TemporaryDirectory(prefix="eoseek-image-") as temporary:
        builder = Builder(chosen.folder or Path(temporary), given, binds=chosen.bind, suite=chosen.suite)
        image = builder.build(chosen.target)
        print(f"{chosen.target}: {builder.megabytes(image)} MB, of which {builder.megabytes(image, '/app')} in /app")
        return 0 if serves_a_search(builder, image) else 1


def read_stages(text: str) -> list[Stage]:
    """In order, with the arguments before the first FROM put in."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(str.strip, lines):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], rest).split()
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].steps.append((word, rest))
        else:
            name, _, value = rest.partition("=")
            arguments[name] = value
    return stages


class Builder:
    """Builds the stages that a target needs, each once."""

    def __init__(self, folder: Path, given: dict[str, str], *, binds: Sequence[Path], suite: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._given = given
        self._binds = binds
        self._suite = suite
        stages = read_stages((REPOSITORY / "Dockerfile").read_text("utf-8"))
        self._stages = {stage.name: stage for stage in stages}
        self._images: dict[str, Image] = {}

    def build(self, name: str) -> Image:
        """The image of a stage, or of a base."""
        if name not in self._images:
            self._images[name] = self._take_steps(self._stages[name]) if name in self._stages else self._base(name)
        return self._images[name]

    def megabytes(self, image: Image, path: str = "") -> int:
        """What files take there."""
        said = subprocess.run(["du", "-sxm", f"{image.root}{path}"], capture_output=True, text=True, check=True)
        return int(said.stdout.split()[0])

    def inside(self, image: Image, command: Sequence[str], **variables: str) -> list[str]:
        """The same command in that root, as its user, with mounts that end with it."""
        mounts = ["mount --rbind /proc proc", "mount --rbind /dev dev"]
        for each in self._binds:
            target = image.root / each.relative_to("/")
            (target if each.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
            if each.is_file():
                target.touch()
            mounts.append(f"mount --bind {shlex.quote(str(each))} {shlex.quote(str(each.relative_to('/')))}")
        handed = {name: value for name, value in os.environ.items() if HANDED_THROUGH.fullmatch(name)}
        environment = [f"{key}={value}" for key, value in (handed | image.environment | variables).items()]
        user = image.user if image.user.isdigit() else "0"
        change = ["chroot", f"--userspec={user}:{user}", ".", "env", "-i", *environment]
        there = shlex.join(["sh", "-c", 'cd "$0" && exec "$@"', image.directory, *command])
        script = " && ".join([f"cd {shlex.quote(str(image.root))}", *mounts, f"exec {shlex.join(change)} {there}"])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]

    def _base(self, name: str) -> Image:
        root = self._folder / re.sub(r"\W", "-", name)
        packages = SLIM if name.endswith("-slim") else FULL
        note(f"FROM {name}: {self._suite} with {', '.join(packages)}")
        if not (root / "usr/local/bin/python").exists():
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", self._suite, root],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        return Image(root=root)

    def _take_steps(self, stage: Stage) -> Image:
        base = self.build(stage.base)
        root = self._folder / stage.name
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", base.root, root], check=True)
        image = replace(base, root=root, arguments={})
        for word, rest in stage.steps:
            note(f"{stage.name}: {word} {rest}")
            image = self._take_step(image, word, rest)
        return image

    def _take_step(self, image: Image, word: str, rest: str) -> Image:
        match word:
            case "RUN":
                shell = ["sh", "-c", re.sub(r"^(--mount=\S+\s+)+", "", rest)]
                subprocess.run(self.inside(image, shell, **image.arguments), check=True, stdout=sys.stderr)
            case "COPY":
                self._copy(image, shlex.split(rest))
            case "WORKDIR":
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, directory=rest)
            case "VOLUME":
                for path in json.loads(rest):
                    (image.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "ARG":
                return replace(image, arguments=image.arguments | {rest: self._given.get(rest, "")})
            case "ENV":
                new = dict(each.split("=", 1) for each in shlex.split(rest))
                new = {key: re.sub(r"\$(\w+)", lambda m: image.environment[m[1]], value) for key, value in new.items()}
                return replace(image, environment=image.environment | new)
            case "USER":
                return replace(image, user=rest)
            case "HEALTHCHECK":
                return replace(image, health=tuple(json.loads(rest.partition("CMD ")[2])))
            case "CMD":
                return replace(image, command=tuple(json.loads(rest)))
            case "LABEL" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise SystemExit(f"{word}: no step that this program knows; teach it")
        return image

    def _copy(self, image: Image, words: list[str]) -> None:
        source = REPOSITORY
        if words[0].startswith("--from="):
            source = self.build(words.pop(0).removeprefix("--from=")).root
        *names, target = words
        place = image.root / image.directory.lstrip("/") / target.lstrip("/") if target[0] != "/" else None
        place = place or image.root / target.lstrip("/")
        for name in names:
            each = source / name.lstrip("/")
            if each.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so") if source == REPOSITORY else None
                shutil.copytree(each, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(each, place)


def serves_a_search(builder: Builder, image: Image) -> bool:
    """Start the command, wait for the health check, add a document, find it, end by SIGTERM with exit code 0."""
    port = free_port()
    variables = {"EOSEEK_API__HOST": "127.0.0.1", "EOSEEK_API__PORT": str(port)}
    started = time.perf_counter()
    process = subprocess.Popen(builder.inside(image, image.command, **variables), stderr=sys.stderr)
    try:
        for _ in waiting(started):
            asked = subprocess.run(builder.inside(image, image.health, **variables), capture_output=True, check=False)
            if asked.returncode == 0:
                break
            if process.poll() is not None:
                raise SystemExit(f"{shlex.join(image.command)} ended with exit code {process.returncode}")
        seconds = time.perf_counter() - started
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            documents = [{"id": "merge", "text": "heapq.merge joins sorted inputs"}, {"id": "sky", "text": "Clouds."}]
            client.post("/documents", json={"documents": documents}).raise_for_status()
            hits = client.post("/search", json={"query": "merge two sorted lists"}).raise_for_status().json()["results"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    print(f"healthy after {seconds:.1f} s; found {[hit['id'] for hit in hits]}; SIGTERM: exit code {code}")
    return hits[0]["id"] == "merge" and code == 0


def waiting(started: float) -> Iterator[None]:
    """Once a second until it has taken too long."""
    while time.perf_counter() - started < READY_SECONDS:
        yield
        time.sleep(1)
    raise SystemExit(f"the health check is not content after {READY_SECONDS} s")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
