"""Signing keys: Ed25519, a private half in a file of its own, a public half in the table `keys`.

A key's id is its RFC 7638 thumbprint, so two keys never share one. Private halves are neither
printed nor logged nor kept anywhere but in their file (0600). Which keys are believed, `PublicKeys`
says; reading the table is state's business.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from agentmesh.errors import Mistake, NoSigningKey, Unsafe

API_KEY = "api:"  # begins the id of an API key; no thumbprint holds a colon, so no envelope is verified by one
TOKEN = "amk_"  # noqa: S105 - how API tokens begin
_API_TOKEN = re.compile(rf"{TOKEN}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})\Z")

Environment = Literal["development", "production"]


@dataclass(frozen=True)
class SigningKey:
    """The private half of a key, and the tenant it signs for. Prints as its id alone."""

    kid: str
    tenant: str
    private: OKPKey = field(repr=False, compare=False)

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public half."""
        raw = self.private.public_key
        assert isinstance(raw, Ed25519PublicKey)  # noqa: S101 - `_signing_key` makes no other
        return raw.public_bytes_raw()

    def derive(self, purpose: str) -> bytes:
        """32 bytes that only holders of this key know, different for each purpose."""
        raw = self.private.private_key
        assert isinstance(raw, Ed25519PrivateKey)  # noqa: S101 - `_signing_key` makes no other
        return HKDF(hashes.SHA256(), 32, salt=None, info=purpose.encode()).derive(raw.private_bytes_raw())

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a signing key is not pickled: it stays in the process that read it")


@dataclass(frozen=True)
class PublicKey:
    """The public half: whose it is and what its owner may grant. `revoked_at` None: in force."""

    kid: str
    tenant: str
    public: bytes
    owner: str
    grants: tuple[str, ...]
    registered_at: datetime
    revoked_at: datetime | None = None

    @cached_property
    def verifier(self) -> OKPKey:
        """The key that checks signatures. Raises ValueError unless `public` is 32 bytes."""
        return verifier_of(self.public)


def verifier_of(public: bytes) -> OKPKey:
    """The key that checks signatures. Raises ValueError unless `public` is 32 bytes."""
    return OKPKey.import_key(Ed25519PublicKey.from_public_bytes(public))


class PublicKeys(Protocol):
    """Where public halves are found."""

    def get(self, kid: str) -> PublicKey | None:
        """The key with exactly this id, revoked or not; None when there is none."""


def default_path() -> Path:
    """Where the development key of this user lies: `~/.agentmesh/keys/private.pem`."""
    return Path.home() / ".agentmesh" / "keys" / "private.pem"


def signing_key(path: Path | None, *, environment: Environment, tenant: str = "default") -> SigningKey:
    """The key in `path` (None: `default_path()`); in development it is made on first use.

    Two processes that ask at once get the same key. Raises NoSigningKey when production has none
    configured, or what `load_key` raises.
    """
    if environment == "production":
        if path is None:
            raise NoSigningKey("no signing key is configured, and production makes none by itself")
        return load_key(path, environment=environment, tenant=tenant)
    path = path or default_path()
    if not path.exists():
        with suppress(FileExistsError):  # somebody was quicker: theirs is the key
            _write(path, Ed25519PrivateKey.generate())
    return load_key(path, environment=environment, tenant=tenant)


def new_key(path: Path, *, tenant: str = "default") -> SigningKey:
    """A new key, whose private half now lies in `path` (PEM, 0600).

    Raises Mistake when there is a file already (it stays as it was) or none can be written.
    """
    private = Ed25519PrivateKey.generate()
    try:
        _write(path, private)
    except FileExistsError:
        wanted = "a path where no file is: a key that is overwritten is lost"
        raise Mistake("there is a key file already", value=str(path), expected=wanted) from None
    except OSError as bad:
        raise Mistake(
            f"the key file cannot be written: {bad.strerror}",
            value=str(path),
            expected="a directory of yours",
        ) from bad
    return _signing_key(private, tenant)


def load_key(path: Path, *, environment: Environment = "development", tenant: str = "default") -> SigningKey:
    """The key whose private half lies in `path`.

    Raises NoSigningKey when the file is missing or holds no Ed25519 key; Unsafe in production when
    others than its owner may read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pem = file.read(16 * 1024)
    except OSError as bad:
        why = bad.strerror or type(bad).__name__
        raise NoSigningKey(f"the key file cannot be read: {why}", value=str(path)) from None
    if environment == "production" and mode & 0o077:
        raise Unsafe(
            f"others may read the key file {path}",
            value=f"{mode:04o}",
            expected="mode 0600",
            next=f"chmod 600 {path}",
        )
    try:
        private = OKPKey.import_key(pem).private_key
    except (ValueError, TypeError, JoseError):  # whose text may quote what it could not read
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise NoSigningKey("the key file holds no private Ed25519 key", value=str(path))
    return _signing_key(private, tenant)


def public_key(key: SigningKey, *, owner: str, grants: tuple[str, ...], registered_at: datetime) -> PublicKey:
    """What to register of `key` so that its signatures are believed."""
    return PublicKey(key.kid, key.tenant, key.public, owner, grants, registered_at)


def read_public(path: Path) -> bytes:
    """The 32 bytes of the public key in a PEM file. Raises Mistake."""
    try:
        key = OKPKey.import_key(path.read_bytes()[: 16 * 1024]).public_key
    except (OSError, ValueError, TypeError, JoseError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise Mistake("the file holds no public Ed25519 key", value=str(path), expected="a PEM file: PUBLIC KEY")
    return key.public_bytes_raw()


def kid_of(public: bytes) -> str:
    """The RFC 7638 thumbprint of an Ed25519 public key (32 bytes): 43 characters of base64url."""
    return OKPKey.import_key(Ed25519PublicKey.from_public_bytes(public)).thumbprint()


# --- API keys: for machines that sign nothing. Only a digest of the secret is stored, in a row of the same table. -----


def new_api_key() -> tuple[str, str, bytes]:
    """A new API key: its id, the token its owner keeps, and the digest to register."""
    kid, secret = f"{API_KEY}{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    return kid, f"{TOKEN}{kid.removeprefix(API_KEY)}_{secret}", hashlib.sha256(secret.encode()).digest()


def api_key(token: str) -> tuple[str, bytes] | None:
    """The id an API token names, and the digest of its secret; None when it is none."""
    found = _API_TOKEN.match(token)
    return (API_KEY + found[1], hashlib.sha256(found[2].encode()).digest()) if found else None


def _signing_key(private: Ed25519PrivateKey, tenant: str) -> SigningKey:
    key = OKPKey.import_key(private)
    return SigningKey(key.thumbprint(), tenant, key)


def _write(path: Path, private: Ed25519PrivateKey) -> None:
    """The key is in `path`, whole. Raises FileExistsError, and then changes nothing."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # made 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(OKPKey.import_key(private).as_pem(private=True))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename it fails when somebody was quicker
    finally:
        os.unlink(draft)
