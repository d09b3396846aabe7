"""What the server shows of itself outside gRPC: metrics, traces, the access log. Each is off until asked for."""

import os
import sys
from typing import TYPE_CHECKING

from serve.access_log import AccessLog
from serve.calls import Calls
from serve.config import Telemetry, parse_address

if TYPE_CHECKING:
    from serve.scrape import Sources
    from serve.scrape_http import MetricsServer
    from serve.spans import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# For the last lines and spans, when the server stops.
_CLOSE_S = 2.0


class TelemetryOutputs:
    """Opened once, closed once or more.

    Args:
        config: what is wanted.
        calls: where the watchers are told of calls.
    """

    def __init__(self, config: Telemetry, calls: Calls) -> None:
        self._config, self._calls = config, calls
        self._metrics: MetricsServer | None = None
        self._tracer: Tracer | None = None
        self._log: AccessLog | None = None
        self._lines: list[str] = []

    @property
    def dropped(self) -> int:
        """Lines that the access log has dropped."""
        return self._log.dropped if self._log else 0

    @property
    def metrics_address(self) -> str:
        """HOST:PORT of the metrics, or ""."""
        return self._metrics.address if self._metrics else ""

    def open(self, sources: "Sources") -> None:
        """Start what is wanted. Raises `InputError` for a port of the metrics that is in use."""
        # Imported where it is wanted: a server without it starts sooner and is smaller.
        config = self._config
        if config.metrics:
            from serve.scrape import ServerCollector
            from serve.scrape_http import MetricsServer

            host, port = parse_address(config.metrics_address(), "--metrics")
            self._metrics = MetricsServer(host, port, ServerCollector(sources))
            self._lines.append(f"metrics  http://{self._metrics.address}/metrics")
        told = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if config.otlp or told:
            from serve.spans import Tracer

            self._tracer = Tracer(config.otlp, config.trace_share)
            self._calls.watchers.append(self._tracer)
            self._lines.append(
                f"traces   to {config.otlp or told}; {config.trace_share:g} of the requests without a traceparent"
            )
        if config.access_log:
            # After the tracer, which says what trace a request belongs to.
            self._log = AccessLog(sys.stderr, config.log_format)
            self._calls.watchers.append(self._log)

    def lines(self) -> list[str]:
        """For the banner: where what is found."""
        return self._lines

    def close(self) -> None:
        """Send and write what is left, for at most a few seconds."""
        if self._metrics:
            self._metrics.close()
        if self._tracer:
            self._tracer.close(_CLOSE_S)
        if self._log:
            self._log.close(_CLOSE_S)
        self._metrics = self._tracer = None
