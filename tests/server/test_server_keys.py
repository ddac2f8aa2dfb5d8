"""Keys with names: the file of them, the verb that makes it, and the server that reads it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import running
from starlette.requests import HTTPConnection
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from outpace.errors import OutpaceError, UsageError
from outpace.llm import LLM
from outpace.server.client import client_scope, scope_of_key, scope_of_name
from outpace.server.errors import APIError
from outpace.server.key_ring import KeyRing
from outpace.server.keys import KeyFile, add_key, find_key, read_keys, remove_key
from outpace.server.limits import ClientLimits, KeyLimits
from outpace.server.middleware import KeyAuth
from outpace.server.settings import ServerSettings


def test_only_hashes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    keys = {name: add_key(path, name) for name in ("alice", "bob")}
    assert len(set(keys.values())) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]
    text = path.read_text()
    for name, key in keys.items():
        assert len(key) >= len("sk-outpace-") + 43  # 256 bits
        assert key.removeprefix("sk-outpace-") not in text
        found = find_key(read_keys(path), ["another", key])
        assert found is not None
        assert (found.name, found.sha256) == (name, hashlib.sha256(key.encode()).hexdigest())
    remove_key(path, "alice")
    assert [key.name for key in read_keys(path)] == ["bob"]
    assert find_key(read_keys(path), [keys["alice"], keys["bob"] + "x", ""]) is None


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "alice")
    with pytest.raises(UsageError, match=r"alice.*already.*keys rm"):
        add_key(path, "alice")
    with pytest.raises(UsageError, match="no key 'bob'; its keys: alice"):
        remove_key(path, "bob")
    for name in ("", "-x", "a b", "ä", "x" * 65, "a\n"):
        with pytest.raises(UsageError, match="no name"):
            add_key(path, name)


def test_no_key_is_lost_between_writers(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    names = [f"key{i}" for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_key(path, name), names))
    assert sorted(key.name for key in read_keys(path)) == sorted(names)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": [{"name": "a", "sha256": "secret", "created": ""}]}',
        json.dumps({"version": 1, "keys": [{"name": "a", "sha256": "0" * 64, "created": ""}] * 2}),
        b"\xff",
    ],
)
def test_damaged_files(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    with pytest.raises(UsageError, match="no file of keys"):
        read_keys(path)
    with pytest.raises(UsageError, match="no file of keys"):
        add_key(path, "bob")


def test_files_that_will_not_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(UsageError, match="outpace keys add"):
        read_keys(path)
    add_key(path, "alice")
    path.chmod(0o620)
    with pytest.raises(UsageError, match="chmod 600"):
        read_keys(path)
    path.write_text("")
    with pytest.raises(OutpaceError, match=r"keys\.json"):  # a file where a folder should be
        add_key(path / "keys.json", "bob")


def test_a_server_with_named_keys(served_llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    settings = ServerSettings(port=0, api_key="sk-single", api_keys=KeyFile(path))
    assert "sha256" not in repr(settings)
    with running(served_llm, settings) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        for key in (alice, bob, "sk-single"):
            assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
            assert http.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        digest = hashlib.sha256(alice.encode()).hexdigest()
        for wrong in (alice + "x", digest, "alice", ""):
            answer = http.get("/v1/models", headers={"x-api-key": wrong})
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
        assert http.get("/v1/models").status_code == 401


def test_a_name_is_the_clients_identity(tmp_path: Path) -> None:
    """Not the key: a renewed one finds what the old one left; and no other header changes who asks."""
    path = tmp_path / "keys.json"
    old = add_key(path, "alice")
    now = [0.0]
    ring = KeyRing(ServerSettings(api_key="sk-single", api_keys=KeyFile(path, lambda: now[0])))
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(client_scope(HTTPConnection(scope)))

    async def nothing(message: Any = None) -> None:
        raise AssertionError(message)

    def ask(key: str) -> None:
        headers = [(b"authorization", b"Bearer unknown"), (b"x-api-key", key.encode())]
        door = KeyAuth(app, ring)
        asyncio.run(door({"type": "http", "path": "/v1/models", "headers": headers}, nothing, nothing))

    ask(old)
    remove_key(path, "alice")
    new = add_key(path, "alice")
    now[0] += 1.0
    ask(new)
    ask("sk-single")
    assert seen == [scope_of_name("alice"), scope_of_name("alice"), scope_of_key("sk-single")]


def test_the_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "keys.json", [0.0]
    alice, bob = add_key(path, "alice"), add_key(path, "bob", KeyLimits(max_concurrent=2))
    ring = KeyRing(ServerSettings(api_key="sk-single", api_keys=KeyFile(path, lambda: now[0])))
    limits = ClientLimits(KeyLimits(), ring.limits)
    limits.admit(scope_of_name("bob"))
    remove_key(path, "alice")
    assert ring.scope_of([alice]) == scope_of_name("alice")  # within the second
    now[0] = 1.0
    assert ring.scope_of([alice]) is None
    assert ring.scope_of([bob]) == scope_of_name("bob")
    remove_key(path, "bob")
    changed = add_key(path, "bob", KeyLimits(max_concurrent=1))
    now[0] = 2.0
    assert ring.scope_of([bob]) is None
    with pytest.raises(APIError, match="1 requests of this key run"):  # the one from before
        limits.admit(scope_of_name("bob"))
    path.chmod(0o666)
    now[0] = 3.0
    assert ring.scope_of([changed]) is None
    assert "chmod 600" in caplog.text
    limits.ended(scope_of_name("bob"), 0)  # though nobody knows it just now
    path.chmod(0o600)
    now[0] = 4.0
    assert ring.scope_of([changed]) == scope_of_name("bob")
    limits.admit(scope_of_name("bob"))
    path.unlink()
    now[0] = 5.0
    assert ring.scope_of([changed]) is None
    assert ring.scope_of(["sk-single"]) == scope_of_key("sk-single")
    assert "sk-" not in caplog.text


def test_a_revoked_key_ends_at_a_running_server(served_llm: LLM, tmp_path: Path) -> None:
    path, now = tmp_path / "keys.json", [0.0]
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    settings = ServerSettings(port=0, api_keys=KeyFile(path, lambda: now[0]))
    with (
        running(served_llm, settings) as server,
        httpx.Client(base_url=server.url, timeout=30, headers={"x-api-key": alice}) as http,
        connect(
            server.url.replace("http", "ws") + "/v1/responses",
            additional_headers={"authorization": f"Bearer {alice}"},
        ) as socket,
    ):
        assert http.get("/v1/models").status_code == 200
        socket.send("{}")
        assert "error" in socket.recv()
        remove_key(path, "alice")
        now[0] += 1.0
        assert http.get("/v1/models").status_code == 401
        socket.send("{}")
        with pytest.raises(ConnectionClosedError, match="1008"):
            socket.recv()
        assert http.get("/v1/models", headers={"x-api-key": bob}).status_code == 200
        carol = add_key(path, "carol")
        now[0] += 1.0
        assert http.get("/v1/models", headers={"x-api-key": carol}).status_code == 200


def test_the_verb(tmp_path: Path) -> None:
    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "outpace", "keys", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        )

    path = tmp_path / "outpace" / "api-keys.json"
    added = keys("add", "alice")
    key = added.stdout.strip()
    assert find_key(read_keys(path), [key])
    assert key not in added.stderr
    assert str(path) in added.stderr
    listed = keys("list")
    assert listed.stdout.startswith("alice\t20")
    assert key not in listed.stdout
    assert keys("rm", "alice", "--file", str(path)).returncode == 0
    assert read_keys(path) == ()
    missing = keys("rm", "alice")
    assert missing.returncode == 2
    assert "no key 'alice'" in missing.stderr
