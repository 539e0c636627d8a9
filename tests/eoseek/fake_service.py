"""A service on one screen: stores documents in a dict, finds those that share words with the query."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

Answer = tuple[int, dict[str, str], Any]


class FakeService:
    """Answers like the real one; `scripted` answers come first, one for each request to `POST /documents`."""

    def __init__(self) -> None:
        self.collections: dict[str, dict[str, dict[str, Any]]] = {"default": {}}
        self.requests: list[tuple[str, str, Any]] = []
        self.authorizations: list[str | None] = []  # of requests over a socket
        self.scripted: list[Answer | Exception] = []
        self.refusals: list[Answer] = []  # one for each search
        self._lock = threading.Lock()

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._respond)

    def _respond(self, request: httpx.Request) -> httpx.Response:
        status, headers, body = self.handle(request.method, str(request.url.raw_path, "ascii"), request.content)
        return httpx.Response(status, headers=headers, json=body)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Serves on a free port of loopback; gives the url."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def handle(self, method: str, target: str, body: bytes) -> Answer:
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        params = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self._lock:
            self.requests.append((method, url.path, params))
            return self._route(method, parts, params, body)

    def _route(self, method: str, parts: list[str], params: dict[str, str], body: bytes) -> Answer:
        documents = self.collections.get(params.get("collection", "default"))
        match method, parts:
            case "PUT", ["collections", name]:
                self.collections.setdefault(name, {})
                return 200, {}, {"name": name}
            case "GET", ["collections"]:
                return 200, {}, {"collections": [{"name": name} for name in self.collections]}
            case "POST", ["documents"]:
                scripted = self.scripted.pop(0) if self.scripted else None
                if isinstance(scripted, Exception):
                    raise scripted
                return scripted or self._index(documents, body)
            case "GET", ["documents", document_id] if documents is not None and document_id in documents:
                return 200, {}, documents[document_id]
            case "POST", ["search"]:
                if self.refusals:
                    return self.refusals.pop(0)
                return self._search(json.loads(body))
            case "POST", ["embed"]:
                inputs = json.loads(body)["inputs"]
                return 200, {}, {"embeddings": [[float(len(text)), 0.5] for text in inputs], "truncated": []}
        return 404, {}, {"code": "not_found", "detail": f"nothing at {'/'.join(parts)}"}

    def _index(self, documents: Any, body: bytes) -> Answer:
        counts: dict[str, Any] = {"indexed": 0, "unchanged": 0, "failed": [], "truncated": []}
        for number, line in enumerate(body.splitlines(), start=1):
            document = json.loads(line)
            document_id = document.get("_id", document.get("id"))
            stored = {"id": document_id, "title": document.get("title", ""), "text": document.get("text", "")}
            if not stored["text"]:
                failure = {"id": document_id, "line": number, "code": "invalid_input", "detail": "text is empty"}
                counts["failed"].append(failure)
            elif documents.get(document_id) == stored:
                counts["unchanged"] += 1
            else:
                documents[document_id] = stored
                counts["indexed"] += 1
        return 200, {}, counts

    def _search(self, body: dict[str, Any]) -> Answer:
        name = body.get("collection", "default")
        if name not in self.collections:
            return 404, {}, {"code": "not_found", "detail": f"no collection {name!r}"}
        results = []
        for query in body["query"]:
            scored = []
            for each in self.collections[name].values():
                shared = len(set(query.split()) & set(each["text"].split()))
                scored.append({**each, "score": shared / 10, "metadata": {}})
            results.append(sorted(scored, key=lambda hit: -hit["score"])[: body["top_k"]])
        return 200, {}, {"results": results, "truncated": []}


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            service.authorizations.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, value = service.handle(self.command, self.path, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
