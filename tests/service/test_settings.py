import pytest

from service.errors import ConfigurationError
from service.settings import Settings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EOSEEK_STOER__KIND", "EOSEEK_STORE__KIND"),
        ("EOSEEK_LOGLEVEL", "EOSEEK_LOG_LEVEL"),
        ("EOSEEK_API_PORT", "EOSEEK_API__PORT"),
    ],
)
def test_unknown_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "1")

    with pytest.raises(ConfigurationError, match=f"^{name} is no setting; the nearest one is {nearest}$"):
        Settings()


def test_variables_of_the_client_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EOSEEK_URL", "EOSEEK_API_KEY", "EOSEEK_TEST_QDRANT_URL"):
        monkeypatch.setenv(name, "x")

    Settings()


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings().store.path
    monkeypatch.setenv("EOSEEK_STORE__PATH", "")

    assert Settings().store.path == default
