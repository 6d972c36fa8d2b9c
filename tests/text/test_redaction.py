"""Passwords in addresses: none is shown, and what is no part of an address stays."""

from __future__ import annotations

import json

import pytest

from interpreto_mlops.text.redaction import redact, redact_value

PASSWORDS = ["zebra", "it's", 'a"b', "a b", "a@b", "a:b", "a,b", "a'@b"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_value_may_hold_any_password(password: str) -> None:
    given = {"llm": {"base_url": f"http://ada:{password}@host:80/v1"}, "list": [f"x=https://{password}@h", 3, None]}
    expected = {"llm": {"base_url": "http://***@host:80/v1"}, "list": ["x=https://***@h", 3, None]}
    assert redact_value(given) == expected


@pytest.mark.parametrize("password", [each for each in PASSWORDS if " " not in each])
def test_a_text_may_quote_the_address(password: str) -> None:
    address = f"http://ada:{password}@host/v1"
    assert redact(f"cannot reach {address!r}: ask x@y") == "cannot reach 'http://***@host/v1': ask x@y".replace(
        "'", repr(address)[0]
    )


@pytest.mark.parametrize(
    "text",
    [
        "'http://host' and ada@host",
        "http://host/ada@x",
        json.dumps({"url": "http://host", "mail": "ada@host"}, separators=(",", ":")),
        json.dumps(["http://host", "ada@host"]),
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert redact(text) == text
