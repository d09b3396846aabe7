"""TLS of the server: its files, checked and read again when they change.

    python serve/server.py --tls.certificate server.pem --tls.key server.key [--tls.client-ca callers.pem]

gRPC asks `_fetch` at each handshake, in a thread of its own: there the files are looked at (three `stat`s), so a new
certificate serves from the next connection on. A new pair that is not one is logged once, and the old one stays.
"""

import logging
import threading
from dataclasses import dataclass
from typing import Any

import grpc

from data.errors import InputError
from serve.pem import check_authorities, check_pair
from serve.security_config import ServerTls, read_file, read_secret, stamp

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pem:
    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        return "_Pem(...)"  # the key must not come into a log by way of a traceback


class TlsFiles:
    """The certificate, its key and the authorities of callers. Raises `InputError` where they do not fit."""

    def __init__(self, config: ServerTls) -> None:
        self._config = config
        self._paths = [path for path in (config.certificate, config.key, config.client_ca) if path]
        self._lock = threading.Lock()
        # Before they are read: what is written meanwhile is then read again.
        self._stamp = stamp(*self._paths)
        self._current = self._given = self._read()

    def credentials(self) -> Any:
        """For `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._given),
            self._fetch,
            require_client_authentication=bool(self._config.client_ca),
        )

    def refresh(self) -> None:
        """Read the files again where they have changed; what does not fit is logged. From any thread."""
        with self._lock:
            seen = stamp(*self._paths)
            if seen == self._stamp:
                return
            self._stamp = seen
            try:
                new = self._read()
            except InputError as error:
                _log.warning("TLS: the files have changed, and the old ones stay in use: %s", error)
                return
            if new != self._current:
                self._current = new
                _log.info("TLS: %s is in use from the next connection on", ", ".join(self._paths))

    def _fetch(self) -> Any:
        """What gRPC is to use from this handshake on; None: as before."""
        self.refresh()
        with self._lock:
            if self._given is self._current:
                return None
            self._given = self._current
            return _configuration(self._given)

    def _read(self) -> _Pem:
        config = self._config
        certificate = read_file(config.certificate, "--tls.certificate")
        key = read_secret(config.key, "--tls.key")
        check_pair(certificate, key, f"--tls.certificate {config.certificate}, --tls.key {config.key}")
        authorities = None
        if config.client_ca:
            authorities = read_file(config.client_ca, "--tls.client-ca")
            check_authorities(authorities, f"--tls.client-ca {config.client_ca}")
        return _Pem(certificate, key, authorities)


def _configuration(pem: _Pem) -> Any:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)
