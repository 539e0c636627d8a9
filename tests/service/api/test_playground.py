import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import service

WEB = Path(service.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg+xml"}


def read(name):
    return (WEB / name).read_text(encoding="utf-8")


def policy_of(response):
    return dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))


def test_playground_is_the_front_page(client):
    response = client.get("/")

    assert response.headers["content-type"].startswith("text/html")
    assert response.text == read("index.html")


@pytest.mark.parametrize("name", FILES)
def test_playground_file_is_served_with_its_type_under_the_policy(client, name):
    response = client.get(f"/web/{name}")

    assert response.status_code == 200
    assert TYPES[Path(name).suffix] in response.headers["content-type"]
    policy = policy_of(response)
    assert policy["default-src"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_playground_file_that_the_browser_has_is_not_sent_again(client):
    first = client.get("/web/app.js")
    again = client.get("/web/app.js", headers={"if-none-match": first.headers["etag"]})
    other = client.get("/web/app.js", headers={"if-none-match": '"another"'})

    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert (other.status_code, other.text) == (200, first.text)


def test_docs_load_their_files_from_this_service_under_the_policy(client):
    page = client.get("/docs")
    links = re.findall(r'(?:href|src)="([^"]*)"', page.text)

    assert page.text == read("docs.html")
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json"} <= set(links)
    for link in links:
        assert client.get(f"/{link}").status_code == 200
    # icons in a style sheet are the one thing more than what the playground may load
    expected = policy_of(client.get("/")) | {"img-src": "'self' data:"}
    for path in ("/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
        assert policy_of(client.get(path)) == expected


@pytest.mark.parametrize("path", ["redoc.standalone.js", "favicon.png", "..%2Fcore.py", "", "oauth2-redirect"])
def test_docs_other_file_of_the_package_is_a_404_problem(client, path):
    response = client.get(f"/docs/{path}")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["none.js", "..%2Fapp.py", "%2e%2e%2fapp.py", "%00", "a" * 300, ".", "x/app.js"])
def test_playground_unknown_file_is_a_404_problem(client, path):
    response = client.get(f"/web/{path}")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_playground_links_lead_somewhere(client):
    links = re.findall(r'(?:href|src)="([^"#]*)"', read("index.html"))
    paths = {link.split("?")[0] for link in links}

    assert {"docs", "info", "metrics", "health/ready"} <= paths
    assert {path: client.get(f"/{path.removeprefix('.')}").status_code for path in paths} == dict.fromkeys(paths, 200)


def test_playground_modules_import_only_each_other():
    imports = {name for file in FILES for name in re.findall(r' from "([^"]+)";', read(file))}

    assert imports
    assert {name for name in imports if name.removeprefix("./") not in FILES} == set()


def test_playground_ids_in_scripts_are_on_the_page():
    page = set(re.findall(r'\bid="([\w-]+)"', read("index.html")))
    scripts = "".join(read(file) for file in FILES if file.endswith(".js"))
    built = set(re.findall(r'\bid: "([\w-]+)"', scripts))

    assert set(re.findall(r'byId\("([\w-]+)"\)', scripts)) - page - built == set()


@pytest.mark.parametrize("name", FILES)
def test_playground_has_nothing_inline_no_other_host_and_no_text_as_html(name):
    text = read(name).replace('xmlns="http://www.w3.org/2000/svg"', "").replace('"http://www.w3.org/2000/svg"', "")

    assert re.findall(r"https?://|<style|\sstyle=|\son\w+=\"", text) == []
    assert re.findall(r"<script(?! (?:type=\"module\"|defer) src=\"(?:web|docs)/)", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(", text) == []


def test_playground_files_are_package_data():
    project = tomllib.loads((WEB.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service"]

    assert [name for name in FILES if not any(fnmatch(f"web/{name}", pattern) for pattern in patterns)] == []
