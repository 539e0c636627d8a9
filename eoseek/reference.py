"""What the code says of itself: the settings in effect, and the pages of `docs/` on settings, errors and metrics.

`python -m eoseek.reference docs` (`make docs`) writes the pages, which a test holds to the code. Price: the words for
users stand in the code, in descriptions and docstrings.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_json

from service.errors import ConfigurationError, EoseekError
from service.metrics import Metrics
from service.paths import cache_dir
from service.settings import ApiKey, Settings, variables

_HIDDEN = "(hidden)"
_NAMES: Mapping[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_SUFFIXES = {"counter": "_total", "info": "_info"}
_TYPED_HEAD = ["variable", "type", "default", "meaning"]


def settings_in_effect(settings: Settings) -> Iterator[str]:
    """Each variable with its value, as lines of an environment file.

    What has its default is commented out, keys are hidden.
    """
    for variable, field in variables().items():
        value = _value_of(settings, variable)
        mark = "# " if value == field.get_default(call_default_factory=True) else ""
        yield f"{mark}{variable}={_written(value)}"


def settings_rows() -> list[str]:
    """Each setting as README's table has it: variable, default, meaning."""
    return _table([], [_row(*each) for each in variables().items()]).splitlines()[2:]


_SETTINGS = """# Settings

Each is a variable of the environment, read and checked once at start; an unknown name is refused, an empty value counts
as unset. Names with `__` belong to a group; lists are written as JSON. `eoseek settings` prints those in effect, keys
hidden. The most used ones stand in [README](../README.md#settings) as well.

Made of `service/settings.py` by `make docs` and held to it by a test: change it there.
"""
_CLIENT_SETTINGS = """## Command line and client

| variable | default | meaning |
| --- | --- | --- |
| `EOSEEK_URL` | `http://127.0.0.1:8080` | Where the service listens, for the commands that call one. |
| `EOSEEK_API_KEY` | | Key that they send. |
| `XDG_CACHE_HOME` | `~/.cache` | Its folder `eoseek` takes pulled checkpoints and the embedded store. |
| `XDG_STATE_HOME` | `~/.local/state` | Its folder `eoseek` remembers how far an interrupted `eoseek ingest` came. |
"""
_ERRORS = """# Error codes

Every error is a problem document (RFC 9457, `application/problem+json`) with a `code` that does not change; its
`detail` names the value, the limit and the way out. [docs/api.md](api.md#errors) shows one and says what to send again.

Made of `service/errors.py` by `make docs` and held to it by a test: change it there.
"""
_METRICS = """# Metrics

At `/metrics`, for Prometheus or OpenMetrics. A histogram has `_bucket`, `_sum` and `_count`. Besides there are
`process_*` of the service, and `eoseek_encoder_process_*` and `eoseek_store_process_*` of its child processes.
[docs/operations.md](operations.md) says what to watch.

Made of `service/metrics.py` by `make docs` and held to it by a test: change it there.
"""


def settings_page() -> str:
    """`docs/settings.md`."""
    parts, single = [_SETTINGS], []
    for name, field in Settings.model_fields.items():
        kind, variable = field.annotation, f"EOSEEK_{name.upper()}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            title = "API" if name == "api" else name.capitalize()
            rows = [_row(*each, is_typed=True) for each in variables(kind, f"{variable}__").items()]
            parts += [f"## {title}\n", f"{_first_line(kind)}\n", _table(_TYPED_HEAD, rows)]
        else:
            single.append(_row(variable, field, is_typed=True))
    return "\n".join([*parts, "## Logs and traces\n", _table(_TYPED_HEAD, single), _CLIENT_SETTINGS])


def errors_page() -> str:
    """`docs/errors.md`."""
    rows = [
        [f"`{each.code}`", _status_of(each), _first_line(each), each.remedy]
        for each in sorted(_errors(EoseekError), key=lambda each: (each.status, each.code))
    ]
    return "\n".join([_ERRORS, _table(["code", "status", "meaning", "what to do"], rows)])


def metrics_page() -> str:
    """`docs/metrics.md`."""
    rows = []
    for each in vars(Metrics(CollectorRegistry())).values():
        if isinstance(each, MetricWrapperBase):
            (family,) = each.describe()
            labels = ", ".join(f"`{label}`" for label in each._labelnames)  # which nothing public tells
            rows.append([f"`{family.name}{_SUFFIXES.get(family.type, '')}`", family.type, labels, family.documentation])
    return "\n".join([_METRICS, _table(["metric", "type", "labels", "meaning"], rows)])


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
}


def _value_of(settings: Settings, variable: str) -> Any:
    value: Any = settings
    for name in variable.removeprefix("EOSEEK_").lower().split("__"):
        value = getattr(value, name)
    return value


def _written(value: Any) -> str:
    """A value as the environment would have it."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return to_json([_without_key(each) if isinstance(each, ApiKey) else each for each in value]).decode()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _without_key(key: ApiKey) -> dict[str, Any]:
    shown = key.model_dump(exclude={"key"}, exclude_none=True) | {"key": _HIDDEN}
    return shown | ({"collections": sorted(key.collections)} if key.collections is not None else {})


def _shown_default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    assert default is not PydanticUndefined
    if isinstance(default, Path):  # the same on every machine
        return f"~/.cache/eoseek/{default.relative_to(cache_dir()).as_posix()}"
    return _written(default)


def _row(variable: str, field: FieldInfo, *, is_typed: bool = False) -> list[str]:
    default = _shown_default(field)
    row = [f"`{variable}`", f"`{default}`" if default else "", str(field.description)]
    return [row[0], _type_of(field), *row[1:]] if is_typed else row


def _type_of(field: FieldInfo) -> str:
    limits = [text for each in field.metadata if (text := _limit(each))]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return "JSON list"
    if origin in (Union, UnionType):
        return _kind(next(each for each in arguments if each is not NoneType))
    return "secret" if annotation is SecretStr else _NAMES.get(annotation, str(annotation))


def _limit(constraint: Any) -> str:
    match constraint:
        case Gt(limit):
            return f"> {limit}"
        case Ge(limit):
            return f">= {limit}"
        case Lt(limit):
            return f"< {limit}"
        case Le(limit):
            return f"<= {limit}"
        case MinLen(length):
            return f"at least {length} long"
    return ""


def _errors(cls: type[EoseekError]) -> list[type[EoseekError]]:
    """Those of the service, once for each code; a base without a code of its own is left out."""
    import service.app  # noqa: F401  # so that all are defined

    found = {} if "code" not in vars(cls) or not cls.__module__.startswith("service.") else {cls.code: cls}
    for child in cls.__subclasses__():
        found |= {each.code: each for each in _errors(child)}
    return list(found.values())


def _status_of(error: type[EoseekError]) -> str:
    return "exit code 2" if issubclass(error, ConfigurationError) else str(error.status)


def _first_line(cls: type[object]) -> str:
    return str(cls.__doc__).partition("\n")[0]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def main(folder: str) -> None:
    """Write the pages into `folder`."""
    for name, page in PAGES.items():
        (Path(folder) / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
