"""Names, pages and keys."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from instil.errors import UserError
from instil.serve.access import KEY_VARIABLE, Access, access_to, read_key
from instil.serve.errors import ServeError

HERE = access_to(["127.0.0.1"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "[::1]", "[::1]:80", "[0:0:0::1]"],
)
def test_a_local_server_goes_by_the_names_of_this_machine(host: str) -> None:
    HERE.check_host(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0:8000", "[::2]",
     "2130706433", "127.0.0.2"],
)  # fmt: skip
def test_and_by_no_other(host: str) -> None:
    with pytest.raises(ServeError, match="--host-name") as told:
        HERE.check_host(host)
    assert told.value.status == 403


@pytest.mark.parametrize("host", [None, "", "a b", "user@localhost", "localhost/x", "localhost:", "[::1", "::1", "a:b"])
def test_what_is_no_name(host: str | None) -> None:
    with pytest.raises(ServeError) as told:
        HERE.check_host(host)
    assert told.value.status == 400


def test_further_names_of_a_local_server() -> None:
    access = access_to(["127.0.0.1"], host_names=["Chat.Example", "fe80::1"])
    access.check_host("chat.example:443")
    access.check_host("[fe80::1]:8000")
    access.check_host("localhost")
    with pytest.raises(ServeError):
        access.check_host("evil.example")


def test_another_local_address_is_a_name_too() -> None:
    access_to(["127.0.0.2"]).check_host("127.0.0.2:8000")


def test_where_others_reach_it_any_name_goes_unless_some_are_given() -> None:
    access_to(["0.0.0.0"], key=b"k").check_host("10.0.0.7:8000")
    named = access_to(["0.0.0.0"], key=b"k", host_names=["chat.example"])
    named.check_host("chat.example")
    with pytest.raises(ServeError):
        named.check_host("10.0.0.7")


@pytest.mark.parametrize("addresses", [["0.0.0.0"], ["::"], ["10.0.0.7"], ["127.0.0.1", "10.0.0.7"], ["2001:db8::1"]])
def test_where_others_reach_it_a_key_is_wanted(addresses: list[str]) -> None:
    with pytest.raises(UserError, match=r"can be reached from other machines, so a key is wanted: set INSTIL_API_KEY"):
        access_to(addresses)
    assert access_to(addresses, key=b"secret").digest is not None


def test_where_nobody_else_reaches_it_none_is_wanted_but_one_that_is_set_counts() -> None:
    access_to(["127.0.0.1", "::1"]).check_key(None)
    with pytest.raises(ServeError):
        access_to(["127.0.0.1"], key=b"secret").check_key(None)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "chat.example"])
def test_a_page_of_its_own_may_ask(host: str) -> None:
    assert HERE.check_origin(f"http://{host}", host) is False
    assert HERE.check_origin(None, host) is False


def test_usual_ports_and_a_proxy_that_speaks_tls() -> None:
    HERE.check_origin("http://localhost", "localhost:80")
    HERE.check_origin("https://chat.example", "chat.example")
    HERE.check_origin("https://chat.example:443", "chat.example")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://localhost:8001", "https://localhost", "file://", "http://localhost:8000/",
     "http://localhost:8000.evil.example", "chrome-extension://abc", "ftp://localhost:8000", "http://127.0.0.1:8000"],
)  # fmt: skip
def test_a_page_of_another_server_may_not(origin: str) -> None:
    with pytest.raises(ServeError) as told:
        HERE.check_origin(origin, "localhost:8000")
    assert told.value.status == 403


def test_one_that_is_listed_may() -> None:
    access = access_to(["127.0.0.1"], origins=["https://chat.example:443", "http://10.0.0.7:3000", "app://obsidian.md"])
    for origin in ("https://chat.example", "http://10.0.0.7:3000", "app://obsidian.md"):
        assert access.check_origin(origin, "localhost:8000") is True
    for origin in ("http://chat.example", "https://chat.example.evil.example", "https://chat.example:8443"):
        with pytest.raises(ServeError):
            access.check_origin(origin, "localhost:8000")


@pytest.mark.parametrize("origin", ["*", "chat.example", "https://*.example", "https://chat.example/x", "https://"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(UserError, match="a whole origin is wanted"):
        access_to(["127.0.0.1"], origins=[origin])


@pytest.mark.parametrize("name", ["*", "chat.example:80", "http://chat.example", "", "a b", "[::1]:80"])
def test_what_is_no_host_name(name: str) -> None:
    with pytest.raises(UserError, match="a name alone is wanted"):
        access_to(["127.0.0.1"], host_names=[name])


def test_the_key() -> None:
    access = access_to(["0.0.0.0"], key=b"secret")
    access.check_key("Bearer secret")
    access.check_key("bearer  secret ")
    for wrong in (
        None,
        "",
        "secret",
        "Bearer",
        "Bearer ",
        "Basic secret",
        "Bearer secre",
        "Bearer secrets",
        "Bearer é",
    ):
        with pytest.raises(ServeError) as told:
            access.check_key(wrong)
        assert told.value.status == 401
        assert told.value.headers() == {"www-authenticate": "Bearer"}
        assert "secret" not in told.value.message
    assert "secret" not in repr(access)


def test_the_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length go to a comparison whose time does not hang on where they differ."""
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    access = access_to(["0.0.0.0"], key=b"secret")
    access.check_key("Bearer secret")
    with pytest.raises(ServeError):
        access.check_key("Bearer s")
    assert {len(one) for one in itertools.chain(*compared)} == {32}
    assert len(compared) == 2


def test_keys_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"from-file\n")
    assert read_key({}) is None
    assert read_key({KEY_VARIABLE: " from-variable "}) == b"from-variable"
    assert read_key({KEY_VARIABLE: "from-variable"}, file) == b"from-file"


@pytest.mark.parametrize("key", ["", "two words", "two\nlines", "schlüssel", "x" * 5000])
def test_what_is_no_key_is_not_repeated(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    for where in ({KEY_VARIABLE: key}, {}):
        with pytest.raises(UserError, match="a key is one line") as told:
            read_key(where, None if where else file)
        assert not key or key not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_key({}, tmp_path / "none")


def test_by_default_only_this_machine_is_believed() -> None:
    assert Access().hosts == HERE.hosts
