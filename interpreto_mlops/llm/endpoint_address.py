"""The address of an endpoint, apart from the credentials in it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from interpreto_mlops.errors import InputError


@dataclass(frozen=True)
class EndpointAddress:
    """An endpoint's address, apart from the `user:password@` that was in it.

    Arguments:
        url: where to connect, without credentials and without a slash at the end: it may be shown and kept.
        authorization: the header that stands for the credentials, or None.
        secrets: what must not be shown: the password, as it was written and as it is meant.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @staticmethod
    def of(given: str) -> EndpointAddress:
        """Read an address.

        Raises:
            InputError: it is not the address of an HTTP server, or it has a query.
        """
        parts = _split(given)
        # Credentials end with the last @; without one the address is shown as far as a query, which may hold a key.
        shown = str(given).rpartition("@")[2].partition("?")[0]
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"cannot ask a language model at {shown!r}; give http(s)://host[:port]/v1")
        if parts.query or parts.fragment:
            raise InputError(
                f"the address of a language model ends with its path, without a query: {shown!r}; "
                "keys are read from the environment"
            )
        credentials, there, host = parts.netloc.rpartition("@")
        url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        if not there:
            return EndpointAddress(url)
        header = f"Basic {base64.b64encode(unquote(credentials).encode()).decode()}"
        password = credentials.partition(":")[2]
        return EndpointAddress(url, header, tuple({password, unquote(password), header.split()[1]} - {""}))


def _split(given: str) -> SplitResult | None:
    try:
        parts = urlsplit(given.strip())
        _ = parts.port
    except (ValueError, AttributeError):
        return None
    return parts
