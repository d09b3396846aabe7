"""What stands between the port and the services: TLS, tokens, and a word about the lack of them."""

import logging
from typing import Any

from serve.access import AccessInterceptor
from serve.calls import Calls
from serve.config import Limits, ServerConfig, parse_address
from serve.security_config import TOKENS_VARIABLE, is_loopback
from serve.tls import TlsFiles
from serve.tokens import TokenBook, tokens_wanted

_log = logging.getLogger(__name__)

# For a connection's handshake; gRPC's default of 120 s keeps places taken by those who never say a word.
_HANDSHAKE_S = 10


class Security:
    """TLS and tokens as `config` wants them. Raises `InputError` where their files break a rule.

    Attributes:
        interceptors: for `grpc.aio.server`; none without tokens, so that calls then cost nothing more.
    """

    def __init__(self, config: ServerConfig, calls: Calls) -> None:
        self._config = config
        self._tls = TlsFiles(config.tls) if config.tls.certificate else None
        self._tokens = TokenBook(config.tokens) if tokens_wanted(config.tokens) else None
        self.interceptors = [AccessInterceptor(self._tokens, calls)] if self._tokens else []

    def add_port(self, server: Any, address: str) -> int:
        """Have `server` listen on HOST:PORT, and say where more can reach it than should; returns the real port."""
        port: int
        if self._tls:
            port = server.add_secure_port(address, self._tls.credentials())
        else:
            port = server.add_insecure_port(address)
        if warning := self._warning():
            _log.warning("%s", warning)
        return port

    def refresh(self) -> None:
        """Take over what has changed in the files, whose faults are logged."""
        if self._tls:
            self._tls.refresh()
        if self._tokens:
            self._tokens.refresh()

    def lines(self) -> list[str]:
        """For the banner."""
        tls = self._config.tls
        wire = f"TLS with {tls.certificate}" if self._tls else "no TLS"
        if tls.client_ca:
            wire += f", callers with a certificate of {tls.client_ca} alone"
        held = f"tokens of {self._tokens.source}: {len(self._tokens)}" if self._tokens else "no tokens"
        return [f"access   {wire}; {held}"]

    def _warning(self) -> str:
        lacks = []
        if not self._tls:
            lacks.append(
                "TLS (--tls.certificate, --tls.key): what callers send can be read and changed on its way"
            )
        if not self._tokens and not self._config.tls.client_ca:
            lacks.append(
                f"tokens (--tokens, or {TOKENS_VARIABLE}): whoever reaches the port can use the server"
            )
        if not lacks or is_loopback(parse_address(self._config.listen, "--listen")[0]):
            return ""
        return f"{self._config.listen} can be reached from other machines, without {'; without '.join(lacks)}"


def channel_limits(limits: Limits) -> list[tuple[str, int]]:
    """Options of gRPC for what one caller, and all together, may hold open.

    `max_receive_message_length` is that of the message on the wire and again of what it is decompressed to: gRPC stops
    there, so that a small message cannot become a large one.
    """
    # Twice the limit, so that a message just above it is refused in our words, with the option to change; further
    # above gRPC refuses it before it is in memory.
    longest = min(2 * limits.request_bytes, 2**31 - 1)
    return [
        ("grpc.max_receive_message_length", longest),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S * 1000),
    ]
