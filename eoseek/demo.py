"""The demo collection: docstrings of the standard library that runs this, so that nothing is downloaded.

Modules written in Python are parsed, not imported, so no import side effect can happen; a short list of harmless
modules written in C is inspected live. The price: docstrings that are built at import time are missed.
"""

import ast
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLLECTION = "demo"
EXAMPLE_QUERY = "merge two sorted lists"

# tests, tools of their own and windows full of repetitive wrappers: they would bury what one searches for
_SKIPPED = frozenset({
    *("antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3"),
    *("msilib", "pydoc_data", "test", "this", "tkinter", "turtledemo"),
})  # fmt: skip
_LIVE = (
    *("array", "atexit", "binascii", "builtins", "cmath", "collections", "datetime", "decimal", "errno", "functools"),
    *("gc", "io", "itertools", "marshal", "math", "operator", "random", "re", "select", "socket", "sqlite3", "struct"),
    *("sys", "time", "types", "unicodedata", "weakref", "zlib"),
)
# what README and the playground ask for, and so what a new user does before all is indexed
_FIRST = ("heapq", "email.utils", "time", "subprocess", "decimal", "datetime")
_MIN_CHARS = 20


@dataclass(frozen=True)
class DemoDocument:
    """A docstring as the service takes it; `metadata` holds its module and its kind."""

    id: str
    title: str
    text: str
    metadata: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The body of `POST /documents` for this document."""
        return asdict(self)


def standard_library_documents() -> list[DemoDocument]:
    """Public docstrings of this Python; the same for every run of one Python version.

    Ordered by id, but for a few modules that come first. Of identical texts the one with the smallest id is kept;
    shorter ones than 20 characters are left out.
    """
    by_id: dict[str, DemoDocument] = {}
    for document in [*_parsed_documents(), *_live_documents()]:
        by_id.setdefault(document.id, document)
    by_text: dict[str, DemoDocument] = {}
    for document_id in sorted(by_id):
        by_text.setdefault(by_id[document_id].text, by_id[document_id])
    order = {module: place for place, module in enumerate(_FIRST)}
    return sorted(by_text.values(), key=lambda document: order.get(document.metadata["module"], len(order)))


def _document(document_id: str, title: str, docstring: str | None, *, module: str, kind: str) -> Iterator[DemoDocument]:
    text = inspect.cleandoc(docstring or "").strip()
    if len(text) >= _MIN_CHARS:
        yield DemoDocument(document_id, title, text, {"module": module, "kind": kind})


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") or part in ("test", "tests") for part in name.split("."))


def _parsed_documents() -> Iterator[DemoDocument]:
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - _SKIPPED):
        for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]:
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if path.is_file() and _is_public(module):
                yield from _module_documents(module, path)


def _module_documents(module: str, path: Path) -> Iterator[DemoDocument]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # a file of another Python's syntax, shipped as data
        return
    yield from _document(module, module, ast.get_docstring(tree), module=module, kind="module")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _is_public(node.name):
            yield from _node_documents(node, module)


def _node_documents(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str) -> Iterator[DemoDocument]:
    name = f"{module}.{node.name}"
    if not isinstance(node, ast.ClassDef):
        title = f"{name}({ast.unparse(node.args)})"
        yield from _document(name, title, ast.get_docstring(node), module=module, kind="function")
        return
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    title = f"class {name}({bases})" if bases else f"class {name}"
    yield from _document(name, title, ast.get_docstring(node), module=module, kind="class")
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(method.name):
            arguments = _without_self(ast.unparse(method.args))
            title = f"{name}.{method.name}({arguments})"
            yield from _document(
                f"{name}.{method.name}", title, ast.get_docstring(method), module=module, kind="method"
            )


def _without_self(arguments: str) -> str:
    first, _, rest = arguments.partition(", ")
    kept = rest if first in ("self", "cls", "$self") else arguments
    return kept.removeprefix("/, ") if kept != "/" else ""


def _live_documents() -> Iterator[DemoDocument]:
    for module in _LIVE:
        try:
            members = vars(importlib.import_module(module))
        except ImportError:  # a Python built without it
            continue
        yield from _document(module, module, members["__doc__"], module=module, kind="module")
        for name in sorted(filter(_is_public, members)):
            yield from _member_documents(members[name], name, module)


def _member_documents(member: Any, name: str, module: str) -> Iterator[DemoDocument]:
    is_alias = getattr(member, "__name__", name) != name
    if not callable(member) or is_alias or getattr(member, "__module__", module) not in (module, f"_{module}"):
        return
    full_name = name if module == "builtins" else f"{module}.{name}"
    if not inspect.isclass(member):
        yield from _document(full_name, full_name + _signature(member), member.__doc__, module=module, kind="function")
        return
    yield from _document(full_name, f"class {full_name}", member.__doc__, module=module, kind="class")
    for method_name, method in sorted(vars(member).items()):
        if _is_public(method_name) and inspect.isroutine(method):
            method_id = f"{full_name}.{method_name}"
            yield from _document(
                method_id, method_id + _signature(method), method.__doc__, module=module, kind="method"
            )


def _signature(function: Any) -> str:
    try:
        arguments = str(inspect.signature(function))
    except (ValueError, TypeError):
        return "(...)"
    return f"({_without_self(arguments[1:-1])})" if arguments.endswith(")") else arguments
