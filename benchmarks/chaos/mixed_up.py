"""Two checkpoints mixed up in the ways that a user can: each refused, with both fingerprints named."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from benchmarks.chaos.checkpoint import write_random_checkpoint
from benchmarks.chaos.restarting import restarting_service
from benchmarks.chaos.results import Goal, Options, Result
from benchmarks.running import free_port
from service.encoders.checkpoint import load_checkpoint

LIMIT_SECONDS = 300
DOCUMENTS = {"documents": [{"id": str(number), "text": f"document number {number}"} for number in range(20)]}


def mixed_up(options: Options) -> Result:
    """Collections of one checkpoint, opened, searched, written and restored by another."""
    here = options.directory
    first, second = (write_random_checkpoint(here / name, seed) for seed, name in enumerate(("first", "second")))
    both = [load_checkpoint(str(path)).fingerprint for path in (first, second)]
    backup, refusals = here / "backup.zip", dict[str, str]()
    with restarting_service(here / "made", encoder__checkpoint=str(first)) as service:
        httpx.post(f"{service.url}/documents", json=DOCUMENTS, timeout=LIMIT_SECONDS).raise_for_status()
        command("backup", str(backup), "--url", service.url)
        store = service.store

    def by(checkpoint: Path, at: Path) -> dict[str, str]:
        return {"EOSEEK_ENCODER__CHECKPOINT": str(checkpoint), "EOSEEK_STORE__PATH": str(at)}

    refusals["served from another directory"] = command("serve", variables=by(second, store), fails=True)
    refusals["a backup restored"] = command("restore", str(backup), variables=by(second, here / "new"), fails=True)
    command("restore", str(backup), "--any-checkpoint", variables=by(second, here / "restored"))
    refusals["a restored backup served"] = command("serve", variables=by(second, here / "restored"), fails=True)
    with restarting_service(here / "made", encoder__checkpoint=str(second), store__collection="other") as service:
        for path, body in (("/search", {"query": "number"}), ("/documents", DOCUMENTS)):
            answer = httpx.post(f"{service.url}{path}", json={**body, "collection": "default"}, timeout=LIMIT_SECONDS)
            refusals[f"POST {path}"] = answer.text if answer.status_code == 409 else f"answered {answer.status_code}"
    write_random_checkpoint(first, seed=1)
    refusals["the same directory with other weights"] = command("serve", variables=by(first, store), fails=True)

    return Result(
        done="a store of one checkpoint met by another",
        goals=[
            Goal(f"{way}: {verdict(said, both)}", "refused, both fingerprints named", names_both(said, both))
            for way, said in refusals.items()
        ],
        figures={"fingerprints": both, "said": refusals},
    )


def names_both(said: str, fingerprints: list[str]) -> bool:
    """Whether a message names both, by eight digits at least."""
    return all(each[:8] in said for each in fingerprints)


def verdict(said: str, fingerprints: list[str]) -> str:
    """In a few words for the table."""
    return "refused, both named" if names_both(said, fingerprints) else said[-160:]


def command(*arguments: str, variables: Mapping[str, str] = {}, fails: bool = False) -> str:
    """A command of the command line; what it said on stderr, where it was to fail and did with exit code 2."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("EOSEEK_")}
    ours = {"EOSEEK_API__PORT": str(free_port()), **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "eoseek", *arguments], env=inherited | ours, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:  # it serves
        process.terminate()
        process.wait()
        return f"not refused within {LIMIT_SECONDS} s"
    if not fails and process.returncode:
        raise RuntimeError(f"eoseek {arguments[0]}: {said[-300:]}")
    return said if process.returncode == 2 else f"exit code {process.returncode}"
