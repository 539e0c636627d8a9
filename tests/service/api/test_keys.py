"""The keyring alone, and how keys are set: short ones refused, none of them shown."""

import json

import pytest
from pydantic import ValidationError

from service.api.keys import Keyring
from service.errors import RateLimitedError, UnauthorizedError
from service.settings import ApiKey, ApiSettings, Settings, StoreSettings

KEY = "Zx9-" + "0123456789abcdef" * 2


def entry(**more):
    return {"role": "read", "key": KEY, **more}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_keyring_rate_takes_a_burst_of_one_second_then_waits():
    clock = Clock()
    ring = Keyring([ApiKey(**entry(requests_per_second=4))], clock=clock)
    for _ in range(4):
        ring.admit(f"Bearer {KEY}", "read")

    with pytest.raises(RateLimitedError) as caught:
        ring.admit(f"Bearer {KEY}", "read")

    assert caught.value.retry_after_seconds == pytest.approx(0.25)
    clock.now += 0.25
    ring.admit(f"Bearer {KEY}", "read")
    clock.now += 3600
    for _ in range(4):
        ring.admit(f"Bearer {KEY}", "read")
    with pytest.raises(RateLimitedError):
        ring.admit(f"Bearer {KEY}", "read")


def test_keyring_rate_below_one_lets_the_first_through_and_says_how_long_to_wait():
    ring = Keyring([ApiKey(**entry(requests_per_second=0.1))], clock=Clock())
    ring.admit(f"Bearer {KEY}", "read")

    with pytest.raises(RateLimitedError) as caught:
        ring.admit(f"Bearer {KEY}", "read")

    assert caught.value.retry_after_seconds == pytest.approx(10)


def test_keyring_compares_with_every_key_and_in_constant_time(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("service.api.keys.hmac.compare_digest", compare)
    ring = Keyring([ApiKey(**entry(key=f"{number}{KEY}")) for number in range(3)])

    ring.admit(f"Bearer 0{KEY}", "read")
    with pytest.raises(UnauthorizedError):
        ring.admit(f"Bearer {KEY}", "read")

    assert len(compared) == 6


def test_keys_are_nowhere_in_settings_that_were_read(monkeypatch):
    monkeypatch.setenv("EOSEEK_API__KEYS", json.dumps([entry()]))
    monkeypatch.setenv("EOSEEK_STORE__API_KEY", KEY)

    settings = Settings()

    assert settings.api.keys[0].role == "read"
    for shown in (repr(settings), str(settings), str(settings.model_dump()), str(vars(settings.api.keys[0]))):
        assert KEY not in shown


def test_keys_file_is_read_in_place_of_the_variable(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([entry(role="admin", collections=["docs"])]) + "\n")
    monkeypatch.setenv("EOSEEK_API__KEYS_FILE", str(path))

    for (key,) in (Settings().api.keys, Settings(api=ApiSettings(keys_file=path)).api.keys):
        assert (key.role, key.collections) == ("admin", {"docs"})


@pytest.mark.parametrize("empty", ["", "  ", "[]"])
def test_keys_empty_means_none(empty):
    assert ApiSettings(keys=empty).keys == ()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (json.dumps([entry(key=KEY[:31])]), "32 to 512"),
        (json.dumps([entry(key=KEY * 100)]), "32 to 512"),
        (json.dumps([entry(key=KEY + " ")]), "32 to 512"),
        (json.dumps([entry(key=KEY + "é")]), "32 to 512"),
        (json.dumps([entry(key=[KEY])]), "32 to 512"),
        (json.dumps([{"key": KEY}]), "role"),
        (json.dumps([entry(role="root")]), "'read', 'write' or 'admin'"),
        (json.dumps([entry(colections=[])]), "Extra"),
        (json.dumps([entry(requests_per_second=0)]), "greater than 0"),
        (json.dumps([entry(), entry(role="admin")]), "same key"),
        (json.dumps(entry()), "no list"),
        (f"read={KEY}", "not JSON"),
        (json.dumps([KEY]), "dictionary"),
    ],
)
def test_keys_that_are_wrong_are_refused_without_being_shown(monkeypatch, keys, reason):
    monkeypatch.setenv("EOSEEK_API__KEYS", keys)

    with pytest.raises(ValidationError, match=reason) as caught:
        Settings()

    assert KEY[:31] not in str(caught.value)


def test_keys_twice_or_unreadable_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="leave one out"):
        ApiSettings(keys=json.dumps([entry()]), keys_file=tmp_path)
    with pytest.raises(ValidationError, match="cannot be read"):
        ApiSettings(keys_file=tmp_path / "none")
    (tmp_path / "empty").write_text("[]")
    with pytest.raises(ValidationError, match="holds no key"):
        ApiSettings(keys_file=tmp_path / "empty")


def test_store_key_is_not_shown():
    assert KEY not in repr(StoreSettings(api_key=KEY))
