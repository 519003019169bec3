"""Who may ask: by which names the server is called, from which web pages, and with which key.

A web page anywhere can send requests to a server on its reader's own machine, and can by DNS rebinding even read the
answers. Its requests carry the page's name, in Host or in Origin, which is why both are looked at.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from instil.errors import UserError
from instil.serve.errors import ServeError

KEY_VARIABLE: Final = "INSTIL_API_KEY"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
KEY_BYTES: Final = 4096  # of a file that holds a key
_AUTHORITY = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^\s:\[\]/@?#\\]+))(?::(?P<port>\d{1,5}))?", re.IGNORECASE
)
_KEY = re.compile(rb"[\x21-\x7e]+")
PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names that the server may be called by, in lower case and without ports; None: any.
        origins: web pages of other servers that may ask, as browsers write them.
        digest: SHA-256 of the key that is wanted, or None.
    """

    hosts: frozenset[str] | None = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    digest: bytes | None = field(default=None, repr=False)

    def check_host(self, host: str | None) -> None:
        """Refuse a name that is not ours.

        Args:
            host: what the request says in Host.

        Raises:
            ServeError: 400 without a name, 403 with one of another's.
        """
        authority = _split(host or "")
        if authority is None:
            raise ServeError(400, "the request names no host; the header Host says which server is meant")
        if self.hosts is not None and authority[0] not in self.hosts:
            raise ServeError(
                403,
                f"this server is not {authority[0][:100]}; a further name of it is given with --host-name",
                kind="permission_error",
            )

    def check_origin(self, origin: str | None, host: str | None) -> bool:
        """Refuse what a web page of another server sends.

        Args:
            origin: what the browser says of the page; other clients say nothing.
            host: what the request says in Host.

        Returns:
            Whether the page is one of another server that may ask, and has to be told so.

        Raises:
            ServeError: 403.
        """
        if origin is None:
            return False
        if origin.lower() in self.origins:
            return True
        if _same(origin, host or ""):
            return False
        raise ServeError(
            403,
            f"web pages of {origin[:100]} may not ask this server; one that may is given with --origin",
            kind="permission_error",
        )

    def check_key(self, authorization: str | None) -> None:
        """Refuse who does not have the key.

        Args:
            authorization: what the request says in Authorization.

        Raises:
            ServeError: 401.
        """
        if self.digest is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        headers = {"www-authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not given.strip():
            raise ServeError(401, "a key is wanted: Authorization: Bearer KEY", headers=headers)
        # Digests are of one length, so that the time tells nothing of the key's own.
        if not hmac.compare_digest(hashlib.sha256(given.strip().encode("latin-1", "replace")).digest(), self.digest):
            raise ServeError(401, "the key is not the one of this server", code="invalid_api_key", headers=headers)


def access_to(
    addresses: Sequence[str], *, key: bytes | None = None, host_names: Iterable[str] = (), origins: Iterable[str] = ()
) -> Access:
    """Who may ask a server that listens on these addresses.

    Where only this machine reaches them, it goes by the names of this machine. Where others do, it goes by any name,
    unless some are given, and a key is wanted.

    Args:
        addresses: IP addresses as they are bound.
        key: see `read_key`.
        host_names: further names, without a port.
        origins: web pages of other servers that may ask, such as ``https://chat.example``.

    Raises:
        UserError: others reach the server and there is no key; or a name or an origin is none.

    >>> access_to(["127.0.0.1"]).hosts == {"localhost", "127.0.0.1", "::1"}
    True
    """
    names = {_name(name) for name in host_names}
    local = all(is_loopback(address) for address in addresses)
    if not local and key is None:
        raise UserError(
            f"{', '.join(addresses)} can be reached from other machines, so a key is wanted: "
            f"set {KEY_VARIABLE}, give --key-file FILE, or listen on 127.0.0.1"
        )
    hosts = frozenset({*LOOPBACK, *addresses, *names}) if local or names else None
    return Access(
        hosts, frozenset(_origin(one) for one in origins), None if key is None else hashlib.sha256(key).digest()
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address.

    >>> is_loopback("127.0.0.2"), is_loopback("::ffff:127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("::")
    (True, True, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def read_key(environment: Mapping[str, str], file: Path | None = None) -> bytes | None:
    """The key that clients have to give, from a file or else from the environment; no list of processes shows those.

    Raises:
        UserError: the file cannot be read, or what is given is no key.
    """
    if file is not None:
        try:
            with file.open("rb") as stream:
                key = stream.read(KEY_BYTES + 1).strip()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}") from None
        where = str(file)
    elif KEY_VARIABLE in environment:
        key, where = environment[KEY_VARIABLE].strip().encode(errors="replace"), KEY_VARIABLE
    else:
        return None
    if not _KEY.fullmatch(key) or len(key) > KEY_BYTES:
        raise UserError(f"{where}: a key is one line of letters, digits and signs without spaces, of ASCII")
    return key


def _split(authority: str) -> tuple[str, int | None] | None:
    """Name and port of ``localhost:8000`` or ``[::1]:8000``, or nothing.

    >>> _split("LocalHost:80"), _split("[0:0::1]"), _split("a:b"), _split("user@a")
    (('localhost', 80), ('::1', None), None, None)
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if match["six"] is None:
        return match["name"].lower().removesuffix("."), port
    try:
        return str(ipaddress.IPv6Address(match["six"])), port
    except ValueError:
        return None


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is the server that is asked; a proxy before it may be the one that speaks TLS."""
    scheme, _, authority = origin.partition("://")
    page, asked, usual = _split(authority), _split(host), PORTS.get(scheme.lower())
    if page is None or asked is None or usual is None:
        return False
    return (page[0], page[1] or usual) == (asked[0], asked[1] or usual)


def _name(given: str) -> str:
    authority = _split(given if given.count(":") < 2 or given.startswith("[") else f"[{given}]")
    if authority is None or authority[1] is not None or "*" in given:
        raise UserError(f"--host-name {given}: a name alone is wanted, such as chat.example, with no port")
    return authority[0]


def _origin(given: str) -> str:
    parts = urlsplit(given.lower())
    if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment or "*" in given:
        raise UserError(
            f"--origin {given}: a whole origin is wanted, such as https://chat.example or http://10.0.0.7:3000"
        )
    usual = PORTS.get(parts.scheme)
    return given.lower().removesuffix(f":{usual}") if usual else given.lower()
