"""The tokens of the server: a file with a line for each, or the same lines in the variable TAILACC_TOKENS.

    # name    groups              secret, or sha256: and the hash of it in hexadecimal
    nightly   score,metadata      sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabb...
    grafana   metadata            0b1c...

    openssl rand -hex 32                                  a new secret
    printf %s SECRET | sha256sum                          its hash, so that the file gives nobody a secret

No message of this file shows anything of a line: whoever mixes up the columns would find the secret in a log.
"""

import hmac
import logging
import os
import re
from dataclasses import dataclass
from hashlib import sha256

from data.errors import InputError
from serve.security_config import TOKENS_VARIABLE, read_secret, stamp

_log = logging.getLogger(__name__)

GROUPS = ("score", "metadata", "admin")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
# RFC 6750's characters. Short ones could be guessed, and found from their hash.
_SECRET = re.compile(r"[A-Za-z0-9._~+/-]{20,512}=*")
# Each is compared with on every call: 0.2 microseconds, beside 4 for the hash.
_MOST = 100


@dataclass(frozen=True, slots=True)
class Token:
    """Who has it, and the API groups that it opens. Of the secret only the SHA-256 is kept."""

    name: str
    groups: frozenset[str]
    digest: bytes

    def __repr__(self) -> str:
        return f"Token({self.name})"


class TokenBook:
    """The tokens of `path`, or of the environment where `path` is "". Raises `InputError` where they break a rule."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Before it is read: what is written meanwhile is then read again.
        self._stamp = stamp(path)
        self._tokens = self._read()

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def source(self) -> str:
        """Where they come from, for a person."""
        return self._path or f"the variable {TOKENS_VARIABLE}"

    def find(self, secret: bytes) -> Token | None:
        """The token with this secret. Takes as long for each answer: all are compared, by hashes of one length."""
        digest = sha256(secret).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found

    def refresh(self) -> None:
        """Read the file again where it has changed; what breaks a rule is logged, and the old tokens stay."""
        if not self._path or (seen := stamp(self._path)) == self._stamp:
            return
        self._stamp = seen
        try:
            self._tokens = self._read()
        except InputError as error:
            _log.warning("the tokens have changed, and the old ones stay in use: %s", error)
        else:
            _log.info("the tokens of %s are read again: %d", self._path, len(self._tokens))

    def _read(self) -> tuple[Token, ...]:
        if self._path:
            content = read_secret(self._path, "--tokens")
            return parse_tokens(content.decode("utf-8", "replace"), f"--tokens {self._path}")
        return parse_tokens(os.environ.get(TOKENS_VARIABLE, ""), TOKENS_VARIABLE)


def tokens_wanted(path: str) -> bool:
    """Whether there are tokens. Raises `InputError` where they are given twice."""
    told = bool(os.environ.get(TOKENS_VARIABLE))
    if path and told:
        raise InputError(f"--tokens and the variable {TOKENS_VARIABLE} are both set; use one of them")
    return bool(path) or told


def parse_tokens(text: str, where: str) -> tuple[Token, ...]:
    """The tokens of a file's text; empty lines and those that begin with # are skipped.

    Raises:
        InputError: a line breaks a rule; the message has its number and `where`, and nothing of the line.
    """
    out: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        token = _parse(parts, f"{where} line {number}")
        for other in out:
            what = "name" if other.name == token.name else "secret" if other.digest == token.digest else ""
            if what:
                raise InputError(f"{where} line {number}: its {what} stands in an earlier line too")
        out.append(token)
    if not 1 <= len(out) <= _MOST:
        raise InputError(f"{where} must hold 1 to {_MOST} tokens, got {len(out)}")
    return tuple(out)


def _parse(parts: list[str], where: str) -> Token:
    if len(parts) != 3:
        raise InputError(
            f"{where} must be NAME GROUPS SECRET with blanks between them, got {len(parts)} parts"
        )
    name, listed, secret = parts
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: the name must be 1 to 64 letters, digits, '_', '.' or '-'")
    groups = frozenset(listed.split(","))
    if not groups <= set(GROUPS):
        raise InputError(f"{where}: the groups must be of {', '.join(GROUPS)}, with commas between them")
    if match := _HASH.fullmatch(secret):
        return Token(name, groups, bytes.fromhex(match[1]))
    if not _SECRET.fullmatch(secret):
        raise InputError(
            f"{where}: the secret must be 20 to 512 letters, digits, '.', '_', '~', '+', '/' or '-' (openssl rand "
            f"-hex 32), or sha256: and the 64 hexadecimal digits of its hash; it has {len(secret)} characters"
        )
    return Token(name, groups, sha256(secret.encode()).digest())
