import pytest

from service.errors import ConfigurationError
from service.settings import Settings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EOSEEK_STOER__KIND", "EOSEEK_STORE__KIND"),
        ("EOSEEK_LOGLEVEL", "EOSEEK_LOG_LEVEL"),
        ("EOSEEK_API_PORT", "EOSEEK_API__PORT"),
        ("EOSEEK_PORT", "EOSEEK_API__PORT"),
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


def test_variables_that_kubernetes_sets_for_a_service_of_this_name_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links = {
        "EOSEEK_SERVICE_HOST": "10.0.0.1",
        "EOSEEK_SERVICE_PORT": "8080",
        "EOSEEK_SERVICE_PORT_HTTP": "8080",
        "EOSEEK_PORT": "tcp://10.0.0.1:8080",
        "EOSEEK_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "EOSEEK_PORT_8080_TCP_ADDR": "10.0.0.1",
        "EOSEEK_API_PORT": "tcp://10.0.0.2:8080",
        "EOSEEK_API_SERVICE_HOST": "10.0.0.2",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)

    Settings()


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings().store.path
    monkeypatch.setenv("EOSEEK_STORE__PATH", "")

    assert Settings().store.path == default
