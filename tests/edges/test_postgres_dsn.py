"""Connection strings, however odd: what is secret in them is never printed."""

from __future__ import annotations

import pickle
import re

import pytest

from cleanup.edges.postgres_dsn import Dsn
from cleanup.edges.postgres_facebank import PostgresFacebank
from cleanup.errors import CleanupError, FacebankError, StorageError
from cleanup.resolve_settings import find_config_dir, read_config, resolve
from tests.entrypoints.test_cli import cleanup

ODD = [
    "postgresql://u:SECRETpw@127.0.0.1:1/db",
    "postgresql://u:SECR/ETpw@127.0.0.1:1/db",
    "postgresql://u:SECR@ETpw@127.0.0.1:1/db",
    "postgresql://u:SECR@ET/pw@127.0.0.1:1/db",
    "postgresql://u:12/ET?password=pw@127.0.0.1:1/db",
    "postgresql://u:SECR:ETpw@127.0.0.1:1/db",
    "postgresql://u:SECR?ETpw@127.0.0.1:1/db",
    "postgresql://u:SECR#ETpw@127.0.0.1:1/db",
    "postgresql://u:SECR%ZZETpw@127.0.0.1:1/db",
    "postgresql://u:SECR%FFETpw@127.0.0.1:1/db",
    "postgresql://u:SECR\udcffETpw@127.0.0.1:1/db",
    "postgresql://u:SECR ETpw@127.0.0.1:1/db",
    "postgresql://u:SECRETpw",
    "postgresql://u:SECRETpw/db",
    "postgresql://u:SECRETpw@[::1/db",
    "postgresql://127.0.0.1:1/db?password=SECRETpw",
    "postgresql://127.0.0.1:1/db?passwort=SECRETpw",
    "mysql://u:SECRETpw@127.0.0.1/db",
    "postgres:SECRETpw",
    "SECRETpw",
    "host=127.0.0.1 port=1 user=u password=SECR ETpw dbname=x",
    "host=127.0.0.1 port=1 password='SECRETpw",
    "host=127.0.0.1 port=1 passwrd=SECRETpw",
    "host=127.0.0.1 port=1 user=u:SECRETpw",
    "host=u:SECRETpw@127.0.0.1 port=1",
    "port=1 host=127.0.0.1,SECR/ETpw",
    "host=127.0.0.1 port=SECRETpw",
    "dbname=postgresql://u:SECRETpw@127.0.0.1:1/db",
    "host=127.0.0.1 port=1 dbname='user=u password=SECRETpw'",
    "service=nope password=SECRETpw",
    "host=127.0.0.1 port=1 sslpassword=SECRETpw",
]


@pytest.mark.parametrize("dsn", ODD)
def test_no_part_of_a_secret_is_seen_of_any_connection_string(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEBANK_DSN", dsn)
    seen = [cleanup("settings", "--json").stdout]
    try:
        facebank = PostgresFacebank(Dsn(dsn, "FACEBANK_DSN"))
        seen += [str(facebank.server), repr(facebank.server), facebank.where]
        facebank.check()
    except FacebankError as error:
        seen += [str(error), repr(error), str(error.__cause__)]

    assert len(seen) > 1, "nothing listens there"
    assert not [text for text in seen if re.search("SECR|ETpw|pw@|port=12 |dbname=ET", text)]


def test_of_a_plain_connection_string_the_server_is_named() -> None:
    dsn = Dsn("postgresql://me:s%40cret@db.example:5432,[::1]:5433/faces?sslmode=require")

    assert str(dsn) == "host=db.example,::1 port=5432,5433 dbname=faces user=me"
    assert not dsn.is_open and dsn.params["password"] == "s@cret" and dsn.n_hosts == 2
    assert Dsn("host=/run/a@b:c/x dbname=faces").is_open
    assert pickle.loads(pickle.dumps(PostgresFacebank(dsn))).dsn == dsn.reveal()


def test_a_url_with_credentials_is_shown_without_them() -> None:
    url = "ftp://key:se/cr+et@store.example/x"
    signed = "https://store.example/v.mp4?X-Signature=abc123: no such object"
    explicit = {"models": url, "cache_dir": signed}

    described = resolve(explicit, {}, None, read_config(find_config_dir(None, {}))).describe()

    for text in (str(CleanupError(f"{url}: gone; {signed}")), str(described["models"]), str(described["cache_dir"])):
        assert "se/cr" not in text and "abc123" not in text
    assert str(StorageError(signed)) == "https://store.example/v.mp4?...: no such object"
    assert described["models"]["value"] == "ftp://store.example/x"
