"""Connections of the client: TLS, the token, and what a failed handshake means in words."""

import os
import re
import sys
from typing import Any

import grpc

from data.errors import InputError
from serve.call_ids import CallIds, Metadata
from serve.config import Connection, parse_address
from serve.keepalive import client_keepalive
from serve.pem import check_authorities, check_pair
from serve.security_config import PUBLIC, TOKEN_VARIABLE, ClientTls, is_loopback, read_file, read_secret

_TOKEN = re.compile(r"[\x21-\x7e]+")

# What gRPC's details hold -> what it means. These do not get better by waiting.
_HANDSHAKE = (
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet, or this machine's clock is wrong"),
    (
        "Hostname Verification Check failed",
        "its certificate is for another name (--tls.name NAME says which it must have)",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of an authority in --tls.ca"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS; without --tls.ca the client speaks none either"),
    ("handshake failed", "the TLS handshake failed"),
)
_CLOSED = "Socket closed"
_CLOSED_PLAIN = "closes the connection at once: it may want TLS (--tls.ca FILE), or have no room for one more"
_CLOSED_TLS = (
    "closes the connection at the TLS handshake: it may want a certificate of the client's (--tls.certificate FILE "
    "--tls.key FILE) that is valid and of the right authority, or have no room for one more"
)


class Channels:
    """Opens channels as `connection` says.

    Attributes:
        metadata: goes with every call; None without a token.

    Raises:
        InputError: a file is missing or does not hold what it must.
    """

    def __init__(self, connection: Connection) -> None:
        self._tls, self._silence_s = connection.tls, connection.silence_s
        token = read_token(connection.token_file)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._credentials = _credentials(connection.tls) if connection.tls.ca else None
        self._ids = CallIds() if connection.trace else None
        if self._ids:
            print(f"trace   the calls of this run have an x-request-id of {self._ids.run}-", file=sys.stderr)
        if token and not self._credentials:
            for address in connection.addresses():
                if not is_loopback(parse_address(address, "--server")[0]):
                    print(
                        f"warning: the token goes to {address} without TLS (--tls.ca FILE): it can be read on its way",
                        file=sys.stderr,
                        flush=True,
                    )

    def scoring_metadata(self) -> Metadata | None:
        """What goes with the next call that scores."""
        return (*(self.metadata or ()), *self._ids.metadata()) if self._ids else self.metadata

    def open(self, address: str) -> Any:
        """A channel with a connection of its own to HOST:PORT."""
        options: list[tuple[str, Any]] = [
            # Without a pool of its own a second channel would share the first one's connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            # A server that restarts is found again within 2 s rather than 2 minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            *client_keepalive(self._silence_s),
        ]
        if not self._credentials:
            return grpc.aio.insecure_channel(address, options=options)
        if self._tls.name:
            options.append(("grpc.ssl_target_name_override", self._tls.name))
        return grpc.aio.secure_channel(address, self._credentials, options=options)

    def check(self, details: str) -> str:
        """Why a server that could not be reached may have ended the connection; "" where `details` do not say so.

        Raises:
            InputError: the handshake failed, and would again.
        """
        for words, meaning in _HANDSHAKE:
            if words in details:
                raise InputError(meaning)
        if _CLOSED in details:
            return _CLOSED_TLS if self._credentials else _CLOSED_PLAIN
        return ""


def read_token(path: str) -> str:
    """The token in the file, or in the environment where `path` is ""; "" where there is none."""
    text = (
        read_secret(path, "--token-file").decode("utf-8", "replace")
        if path
        else os.environ.get(TOKEN_VARIABLE, "")
    )
    token = text.strip()
    if (path or token) and not _TOKEN.fullmatch(token):
        where = f"--token-file {path}" if path else f"the variable {TOKEN_VARIABLE}"
        raise InputError(f"{where} must hold one token of visible characters and nothing else")
    return token


def _credentials(tls: ClientTls) -> Any:
    authorities = chain = key = None
    if tls.ca != PUBLIC:
        authorities = read_file(tls.ca, "--tls.ca")
        check_authorities(authorities, f"--tls.ca {tls.ca}")
    if tls.certificate:
        chain, key = read_file(tls.certificate, "--tls.certificate"), read_secret(tls.key, "--tls.key")
        check_pair(chain, key, f"--tls.certificate {tls.certificate}, --tls.key {tls.key}")
    return grpc.ssl_channel_credentials(authorities, key, chain)
