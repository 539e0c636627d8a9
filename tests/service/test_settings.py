import pytest
from pydantic import ValidationError

from service.errors import ConfigurationError
from service.settings import EncoderSettings, Settings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EOSEEK_STOER__KIND", "EOSEEK_STORE__KIND"),
        ("EOSEEK_LOGLEVEL", "EOSEEK_LOG_LEVEL"),
        ("EOSEEK_API_PORT", "EOSEEK_API__PORT"),
        ("EOSEEK_PORT", "EOSEEK_API__PORT"),
        ("EOSEEK_LOG_LEVEL__X", "EOSEEK_LOG_LEVEL"),
        ("EOSEEK_API__PORT__X", "EOSEEK_API__PORT"),
        ("EOSEEK_API__KEYS__0", "EOSEEK_API__KEYS"),
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


def remote(urls: str, **more: object) -> EncoderSettings:
    return EncoderSettings(backend="remote", urls=urls, **more)


def test_upstreams_are_named_with_or_without_v1() -> None:
    urls = remote('["http://gpu-1:8000", "https://gpu-2/v1/", "http://[::1]:8000/embedder"]').urls

    assert urls == ("http://gpu-1:8000/v1", "https://gpu-2/v1", "http://[::1]:8000/embedder/v1")


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ('["gpu-1:8000"]', "is no address"),
        ('["ftp://gpu-1"]', "is no address"),
        ('["http://"]', "is no address"),
        ('["http://gpu-1:x"]', "is no address"),
        ('["http://[::1"]', "is no address"),
        ('["http://gpu-1/?key=s3cret"]', "is no address"),
        ('["http://s3cret@gpu-1"]', "holds a user or a password"),
        ('["http://gpu-1", "http://gpu-1/v1"]', "names an address twice"),
        ("[]", "go together"),
        ("http://gpu-1", "write a list"),
    ],
)
def test_upstream_that_is_no_address_is_refused_without_showing_it(urls: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        Settings(encoder={"backend": "remote", "urls": urls})
    assert "s3cret" not in str(refused.value)


def test_upstreams_without_their_backend_are_refused() -> None:
    with pytest.raises(ValidationError, match="go together"):
        EncoderSettings(urls='["http://gpu-1"]')


def test_upstream_key_is_not_shown_and_stands_in_a_header() -> None:
    hidden = "x" * 20
    assert hidden not in repr(remote('["http://gpu-1"]', api_key=hidden))
    with pytest.raises(ValidationError, match="cannot stand in a header") as refused:
        Settings(encoder={"backend": "remote", "urls": '["http://gpu-1"]', "api_key": f"{hidden}\n"})
    assert hidden not in str(refused.value)
