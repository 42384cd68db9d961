"""Settings from the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from services.runtime.config import ConfigError, dlq_config, issuer_config, ledger_config

GOOD = {
    "FIRSTCOME_KAFKA_BOOTSTRAP": "127.0.0.1:9092",
    "FIRSTCOME_POSTGRES_DSN": "postgresql://user@127.0.0.1:5432/db",
    "FIRSTCOME_AUTH": "off",
}
READERS = [issuer_config, ledger_config, dlq_config]
Read = Callable[[Mapping[str, str]], Any]


@pytest.mark.parametrize("read", READERS)
def test_two_addresses_are_enough(read: Read) -> None:
    config = read(GOOD)
    assert config.common.kafka_bootstrap == "127.0.0.1:9092"
    assert config.common.topic_prefix == ""


@pytest.mark.parametrize("read", READERS)
def test_all_bad_settings_are_named_at_once(read: Read) -> None:
    bad = {
        "FIRSTCOME_POSTGRES_DSN": "mysql://x",
        "FIRSTCOME_HEALTH_LISTEN": "nowhere",
        "FIRSTCOME_LOG_LEVEL": "LOUD",
        "FIRSTCOME_POSTGRES_POOL_SIZE": "many",
        "FIRSTCOME_DRAIN_TIMEOUT_S": "0",
        "FIRSTCOME_STARTUP_TIMEOUT_S": "-1",
        "FIRSTCOME_AUTH": "off",
    }
    with pytest.raises(ConfigError) as raised:
        read(bad)
    text = str(raised.value)
    assert "FIRSTCOME_KAFKA_BOOTSTRAP is not set" in text
    for name in bad:
        assert (name in text) == (name != "FIRSTCOME_AUTH")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FIRSTCOME_CONCURRENT_CALLS_MAX", "0"),
        ("FIRSTCOME_WAITERS_MAX", "1.5"),
        ("FIRSTCOME_UNSETTLED_MAX", "1e6"),
        ("FIRSTCOME_LISTEN", "127.0.0.1"),
        ("FIRSTCOME_LISTEN", "127.0.0.1:65536"),
        ("FIRSTCOME_LISTEN", ":50051"),
    ],
)
def test_a_bad_setting_of_the_issuer_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        issuer_config({**GOOD, name: value})


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "10.1.2.3:50051", "[::]:50051", "example.org:50051"])
def test_without_authentication_only_loopback_is_served(listen: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        issuer_config({**GOOD, "FIRSTCOME_LISTEN": listen})


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:50051", "localhost:50051"])
def test_loopback_is_served(listen: str) -> None:
    assert issuer_config({**GOOD, "FIRSTCOME_LISTEN": listen}).listen == listen


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    config = issuer_config({**GOOD, "FIRSTCOME_WAITERS_MAX": "", "FIRSTCOME_LISTEN": ""})
    assert (config.waiters_max, config.listen) == (100_000, "127.0.0.1:50051")


def test_the_short_name_of_the_scheme_is_taken() -> None:
    config = issuer_config({**GOOD, "FIRSTCOME_POSTGRES_DSN": "postgres://u@h/d"})
    assert config.common.postgres_dsn == "postgresql://u@h/d"
