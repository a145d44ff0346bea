"""Signing keys: made once, kept to oneself, and never shown."""

from __future__ import annotations

import base64
import pickle
import stat
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from threading import Barrier, Thread

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import OKPKey

from agentmesh.communication import keys
from agentmesh.errors import MeshError, Mistake, NoSigningKey, Unsafe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "private.pem"


def test_a_new_key_is_the_one_that_is_loaded(path: Path) -> None:
    made = keys.new_key(path, tenant="acme")
    assert keys.load_key(path, environment="production", tenant="acme") == made
    assert made.tenant == "acme"
    assert made.kid == keys.kid_of(made.public)


def test_the_id_is_the_thumbprint_of_rfc_8037() -> None:
    public = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert keys.kid_of(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_s10_only_the_owner_may_read_a_key_file(path: Path) -> None:
    keys.new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["private.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o620, 0o601])
def test_s10_production_refuses_a_key_file_that_others_may_touch(path: Path, mode: int) -> None:
    made = keys.new_key(path)
    path.chmod(mode)
    with pytest.raises(Unsafe, match=f"{mode:04o}.*chmod 600"):
        keys.load_key(path, environment="production")
    assert keys.load_key(path, environment="development") == made


def test_s10_a_key_shows_its_id_and_nothing_else(path: Path) -> None:
    made = keys.new_key(path)
    secret = str(made.private.as_dict(private=True)["d"])
    assert secret not in repr(made) + str(made) + f"{made!r}"
    assert repr(made) == f"SigningKey(kid='{made.kid}', tenant='default')"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(made)


def test_s10_an_error_shows_nothing_of_the_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END PRIVATE KEY-----\n")
    with pytest.raises(NoSigningKey) as refused:
        keys.load_key(path)
    assert "c2VjcmV0" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_key_is_never_overwritten(path: Path) -> None:
    made = keys.new_key(path)
    with pytest.raises(Mistake, match="there is a key file already"):
        keys.new_key(path)
    assert keys.load_key(path) == made


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeshError, match="E_USAGE"):
        keys.new_key(tmp_path / "file" / "private.pem")


def test_development_makes_its_key_on_first_use(path: Path) -> None:
    made = keys.signing_key(path, environment="development")
    assert keys.signing_key(path, environment="development") == made


def test_the_development_key_lies_under_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = keys.signing_key(None, environment="development")
    assert keys.load_key(tmp_path / ".agentmesh" / "keys" / "private.pem") == made


def test_production_makes_no_key_and_says_how(path: Path) -> None:
    for asked in (path, None):
        with pytest.raises(NoSigningKey, match="agentmesh keys new"):
            keys.signing_key(asked, environment="production")
    assert not path.exists()


def test_threads_that_ask_at_once_get_one_key(path: Path) -> None:
    barrier, found = Barrier(8), []

    def ask() -> None:
        barrier.wait(10)
        found.append(keys.signing_key(path, environment="development").kid)

    threads = [Thread(target=ask) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert len(found) == 8
    assert len(set(found)) == 1


ASK = """
import pathlib, sys
from agentmesh.communication import keys
print("ready", flush=True)
sys.stdin.readline()
print(keys.signing_key(pathlib.Path(sys.argv[1]), environment="development").kid)
"""


def test_processes_that_ask_at_once_get_one_key(path: Path) -> None:
    command = [sys.executable, "-c", ASK, str(path)]
    with ExitStack() as stack:
        asking = [stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True)) for _ in range(2)]
        assert [one.stdout.readline() for one in asking if one.stdout] == ["ready\n"] * 2
        for one in asking:  # both stand before the door
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        kids = {one.communicate(timeout=30)[0].strip() for one in asking}
    assert kids == {keys.load_key(path).kid}


def test_who_comes_second_takes_the_first_one_s_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keys.new_key(path)
    monkeypatch.setattr(Path, "exists", lambda self: False)  # looked just before it was there
    assert keys.signing_key(path, environment="development") == made


def test_what_holds_no_private_ed25519_key_is_refused(path: Path) -> None:
    made = keys.new_key(path)
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    others = {
        "empty": b"",
        "noise": b"\x00\xff" * 100,
        "public": made.private.as_pem(private=False),
        "other curve": X25519PrivateKey.generate().private_bytes(*form),
        "encrypted": OKPKey.generate_key("Ed25519").as_pem(private=True, password="x"),
    }
    for name, pem in others.items():
        path.write_bytes(pem)
        with pytest.raises(NoSigningKey, match="holds no private Ed25519 key"):
            pytest.fail(f"{name}: {keys.load_key(path)}")


@pytest.mark.parametrize("missing", ["nothing/private.pem", "."])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(NoSigningKey, match="cannot be read"):
        keys.load_key(tmp_path / missing)


def test_what_is_registered_is_the_public_half(path: Path) -> None:
    made = keys.new_key(path, tenant="acme")
    at = datetime(2025, 4, 25, tzinfo=UTC)
    public = keys.public_key(made, owner="shop", grants=("data:*",), registered_at=at)
    assert public == keys.PublicKey(made.kid, "acme", made.public, "shop", ("data:*",), at, None)
    assert not public.verifier.is_private
