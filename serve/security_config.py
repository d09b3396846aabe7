"""The settings of who may connect and call, of the server and of the client. Nothing heavy is imported here.

Secrets come from files or from the environment, never from the command line, where every process list shows them.
"""

import os
import socket
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from data.errors import InputError

# The same in the environment, where there is no file.
TOKENS_VARIABLE, TOKEN_VARIABLE = "TAILACC_TOKENS", "TAILACC_TOKEN"
# As the value of --tls.ca.
PUBLIC = "public"


@dataclass(frozen=True)
class ServerTls:
    """The server's certificate. Files that change are taken over by the next handshake, without a restart."""

    certificate: str = ""
    """PEM file of the server's certificate with its chain; with it the server speaks TLS and nothing else"""
    key: str = ""
    """PEM file of the certificate's private key, without a password"""
    client_ca: str = ""
    """PEM file of authorities: only callers with a certificate of one of these are let in (mutual TLS)"""

    def check(self) -> None:
        """Raise `InputError` naming the options that need each other."""
        _check_pair(self.certificate, self.key)
        if self.client_ca and not self.certificate:
            raise InputError(
                "--tls.client-ca needs --tls.certificate and --tls.key: without TLS nobody shows any"
            )


@dataclass(frozen=True)
class ClientTls:
    """How the client speaks TLS."""

    ca: str = ""
    """PEM file of the authorities that the servers' certificates come from, or "public" for the public ones that gRPC
    knows; "": no TLS"""
    certificate: str = ""
    """PEM file of the client's own certificate, for servers that ask for one (mutual TLS)"""
    key: str = ""
    """PEM file of its private key, without a password"""
    name: str = ""
    """the name in the servers' certificates, where it is not the host of --server"""

    def check(self) -> None:
        """Raise `InputError` naming the options that need each other."""
        _check_pair(self.certificate, self.key)
        for option, value in (("--tls.certificate", self.certificate), ("--tls.name", self.name)):
            if value and not self.ca:
                raise InputError(
                    f"{option} needs --tls.ca FILE (or --tls.ca {PUBLIC}): without it there is no TLS"
                )


def read_file(path: str, option: str) -> bytes:
    """The bytes of a file that `option` names. Raises `InputError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}: {error.strerror}") from error


def read_secret(path: str, option: str) -> bytes:
    """As `read_file`, of a file that holds a secret. Raises `InputError` where everybody on the machine may read it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}: {error.strerror}") from error
    # The group may: that is how an orchestrator lends a secret to a user that is not root.
    if mode & stat.S_IRWXO:
        raise InputError(
            f"{option}: {path} holds a secret, and every user of this machine may open it (mode "
            f"{stat.S_IMODE(mode):04o}, the last digit must be 0): chmod 600 {path}"
        )
    return read_file(path, option)


def stamp(*paths: str) -> tuple[tuple[int, ...], ...]:
    """What differs once a file was written or replaced; links are followed. A file that is not there is empty."""
    out: list[tuple[int, ...]] = []
    for path in paths:
        try:
            about = os.stat(path)
        except OSError:
            out.append(())
        else:
            out.append((about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return tuple(out)


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine, seen from itself alone."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _check_pair(certificate: str, key: str) -> None:
    if bool(certificate) != bool(key):
        there, missing = ("certificate", "key") if certificate else ("key", "certificate")
        raise InputError(f"--tls.{there} needs --tls.{missing} FILE beside it")
