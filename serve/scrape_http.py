"""GET /metrics over HTTP, in threads of its own. No TLS and no password: on the loopback, or behind a wall.

python serve/server.py --metrics 127.0.0.1:9100
curl http://127.0.0.1:9100/metrics
"""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from data.errors import InputError

# A caller that connects and says nothing holds a thread this long.
_PATIENCE_S = 10.0


class MetricsServer:
    """Serves what `collector` and the process give. Starts at once.

    Args:
        host, port: to listen on; port 0 takes any free one.

    Attributes:
        address: HOST:PORT with the real port.

    Raises:
        InputError: the port is in use, or is none of this machine.
    """

    def __init__(self, host: str, port: int, collector: Collector) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        ProcessCollector(registry=registry)
        try:
            found = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            kind = type("_Server", (_Server,), {"address_family": found[0]})
            self._server: WSGIServer = make_server(
                str(found[4][0]), port, _only_metrics(make_wsgi_app(registry)), kind, _Handler
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --metrics HOST:PORT "
                "(port 0 takes any free one)"
            ) from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Give the port back. A scrape on its way may be cut off."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingWSGIServer):
    # A scrape that hangs must not hold up the end of the server.
    daemon_threads = True
    block_on_close = False


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""


def _only_metrics(app: Callable[..., Any]) -> Callable[..., Iterable[bytes]]:
    """`app` under /metrics, and 404 elsewhere."""

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            answer: Iterable[bytes] = app(environ, start)
            return answer
        start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"metrics are at /metrics\n"]

    return serve
