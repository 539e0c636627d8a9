import asyncio
import json
import threading

import anyio.from_thread

from service.store import backup
from service.store.edge import EdgeStore
from tests.service.api.asgi import Exchange

ADMIN, DOCS_ONLY = (f"{name}-{'0123456789' * 4}" for name in "ad")
KEYS = json.dumps([{"role": "admin", "key": ADMIN}, {"role": "admin", "key": DOCS_ONLY, "collections": ["default"]}])


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_backup_is_sent_whole_and_its_copy_discarded(make_client, tmp_path):
    client = make_client(store=EdgeStore(tmp_path / "store"))
    client.post("/documents", json={"documents": [{"id": "a", "text": "t"}]})

    response = client.post("/backup")
    (tmp_path / "b.zip").write_bytes(response.content)

    assert response.headers["content-type"] == "application/zip"
    (saved,) = backup.check(tmp_path / "b.zip").collections
    assert (saved.name, saved.num_documents) == ("default", 1)
    assert list((tmp_path / "store" / "snapshots").iterdir()) == []


def test_backup_of_a_store_without_files_is_501(client):
    response = client.post("/backup")

    assert (response.status_code, response.json()["code"]) == (501, "not_implemented")


def test_backup_wants_a_key_for_all_collections(make_client):
    client = make_client(keys=KEYS)

    assert client.post("/backup", headers=bearer(DOCS_ONLY)).status_code == 403
    assert client.post("/backup", headers=bearer(ADMIN)).status_code == 501


def test_backup_whose_client_goes_away_leaves_no_copy(make_client, tmp_path, monkeypatch):
    client = make_client(store=EdgeStore(tmp_path / "store"))
    gone, first = threading.Event(), asyncio.Event()

    def slow_pack(directory, collections):
        yield b"first"
        assert any(directory.iterdir())
        anyio.from_thread.run_sync(first.set)
        gone.wait(20)
        yield b"second"

    monkeypatch.setattr(backup, "pack", slow_pack)

    async def ask_and_leave():
        exchange = Exchange(client.app, "POST", "/backup")
        exchange.feed(b"", more=False)
        await first.wait()
        exchange.hang_up()
        gone.set()
        await exchange.done

    client.portal.call(ask_and_leave)
    assert list((tmp_path / "store" / "snapshots").iterdir()) == []


def test_backup_is_not_made_for_a_page_of_another_site_nor_for_a_link_to_it(client):
    page = {"origin": "http://rebound.example", "host": "rebound.example"}

    assert client.post("/backup", headers=page).status_code == 403
    assert client.get("/backup").status_code == client.head("/backup").status_code == 405


def test_backup_unknown_query_parameter_is_refused(client):
    response = client.post("/backup?collection=docs")

    assert (response.status_code, response.json()["detail"].split(":")[0]) == (422, "collection")
