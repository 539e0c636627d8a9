"""A fake Qdrant server: the calls that the service makes over HTTP, answered by the client's own local mode.

It stands in where no server's program is at hand. How a real one behaves while it starts or ends it cannot show.
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel
from qdrant_client import QdrantClient, models


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that were cut."""


class FakeQdrant:
    """Listens on loopback between `with` and its end; the collections outlast the services that use them."""

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = fake.answer(self.command, urlsplit(self.path).path, json.loads(body or b"null"))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = _answer

            def log_message(self, format: str, *arguments: Any) -> None:
                """Says nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "FakeQdrant":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and body of one call."""
        for (wanted, pattern), call in _CALLS.items():
            if wanted == method and (found := re.fullmatch(pattern, path)):
                try:
                    with self._lock:
                        result = call(self._client, *found.groups(), body)
                except ValueError as error:  # local mode's word for what is not there
                    return 404, {"status": {"error": str(error)}, "time": 0.0}
                return 200, {"result": _plain(result), "status": "ok", "time": 0.0}
        raise NotImplementedError(f"{method} {path}")


def _plain(result: Any) -> Any:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json")
    return [_plain(each) for each in result] if isinstance(result, list) else result


def _create(client: QdrantClient, name: str, body: Any) -> bool:
    asked = models.CreateCollection.model_validate(body)
    return client.create_collection(name, vectors_config=asked.vectors, metadata=asked.metadata)


def _alias(client: QdrantClient, body: Any) -> bool:
    return client.update_collection_aliases(models.ChangeAliasesOperation.model_validate(body).actions)


def _upsert(client: QdrantClient, name: str, body: Any) -> Any:
    return client.upsert(name, models.PointsBatch.model_validate(body).batch)


def _delete(client: QdrantClient, name: str, body: Any) -> Any:
    kind = models.PointIdsList if "points" in body else models.FilterSelector
    return client.delete(name, kind.model_validate(body))


def _count(client: QdrantClient, name: str, body: Any) -> Any:
    return client.count(name, count_filter=models.CountRequest.model_validate(body).filter)


def _retrieve(client: QdrantClient, name: str, body: Any) -> Any:
    asked = models.PointRequest.model_validate(body)
    return client.retrieve(name, asked.ids, with_payload=asked.with_payload, with_vectors=bool(asked.with_vector))


def _query(client: QdrantClient, name: str, body: Any) -> Any:
    return client.query_batch_points(name, models.QueryRequestBatch.model_validate(body).searches)


_ONE = "/collections/([^/]+)"
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("GET", "/aliases"): lambda client, _: client.get_aliases(),
    ("POST", "/collections/aliases"): _alias,
    ("GET", _ONE): lambda client, name, _: client.get_collection(name),
    ("PUT", _ONE): _create,
    ("DELETE", _ONE): lambda client, name, _: client.delete_collection(name),
    ("GET", f"{_ONE}/exists"): lambda client, name, _: {"exists": client.collection_exists(name)},
    ("PUT", f"{_ONE}/points"): _upsert,
    ("POST", f"{_ONE}/points"): _retrieve,
    ("POST", f"{_ONE}/points/delete"): _delete,
    ("POST", f"{_ONE}/points/count"): _count,
    ("POST", f"{_ONE}/points/query/batch"): _query,
}
