"""A backup while documents come and go: restored elsewhere it answers as the service did."""

import threading
from pathlib import Path

import httpx

from benchmarks.chaos.mixed_up import command
from benchmarks.chaos.restarting import encoder, restarting_service
from benchmarks.chaos.results import Goal, Options, Result, zero
from benchmarks.clients import is_same_ranking
from benchmarks.running import texts_of_lengths
from eoseek.client import Client

BODY = {"collection": "kept", "top_k": 10}


def backup_under_load(options: Options) -> Result:
    """A collection that stands still is compared; another one is written to all the while."""
    settings, here = encoder(options), options.directory
    queries = texts_of_lengths([8] * 200, seed=5)
    documents = [
        {"id": str(number), "text": text}
        for number, text in enumerate(texts_of_lengths([60] * options.pick(2000, 300), seed=6))
    ]
    file = here / "backup.zip"
    with restarting_service(here / "saved", **settings) as service, Client(service.url) as client:
        client.create_collection("kept")
        client.ingest_stream(documents, collection="kept")
        expected = answers(service.url, queries)
        num_written = backed_up_under_writes(client, file)
    variables = {"EOSEEK_ENCODER__CHECKPOINT": settings["encoder__checkpoint"]}
    command("restore", str(file), variables=variables | {"EOSEEK_STORE__PATH": str(here / "elsewhere" / "store")})
    with restarting_service(here / "elsewhere", **settings) as service:
        found = answers(service.url, queries)
        with Client(service.url) as client:
            names = {each["name"]: each["documents"] for each in client.list_collections()}
    different = sum(not is_same_ranking(a, b) for a, b in zip(found, expected, strict=True))
    return Result(
        done=f"{len(documents)} documents backed up while others were written, restored elsewhere, 200 queries",
        goals=[
            zero(different, "answers differ"),
            Goal(f"{names.get('kept')} documents", f"{len(documents)}", names.get("kept") == len(documents)),
            Goal(f"{num_written} requests written meanwhile", "at least 1", num_written > 0),
        ],
        figures={"collections": names, "written_meanwhile": num_written},
    )


def backed_up_under_writes(client: Client, file: Path) -> int:
    """Requests that were confirmed while `eoseek backup` ran."""
    has_ended, num_written = threading.Event(), 0

    def write() -> None:
        nonlocal num_written
        while not has_ended.is_set():
            client.ingest_stream([{"id": str(num_written % 50), "text": f"version {num_written}"}])
            num_written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        command("backup", str(file), "--url", client.url)
    finally:
        has_ended.set()
        writer.join()
    return num_written


def answers(url: str, queries: list[str]) -> list[list[dict[str, object]]]:
    """The ten best of each query."""
    response = httpx.post(f"{url}/search", json={"query": queries, **BODY}, timeout=300).raise_for_status()
    return list(response.json()["results"])
