"""Is a service well? For the health checks of docker-compose.yml: exit code 0, or 1 with one line on stderr.

python docker/healthy.py http http://mlflow:5000/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default
python docker/healthy.py grpc 127.0.0.1:8001      (grpc.health.v1 must say SERVING; it wants no token)
python docker/healthy.py grpc 127.0.0.1:8001 ca.pem      by TLS, with the authority of the server's certificate
"""

import sys

TIMEOUT_S = 4.0


def http(url: str) -> None:
    """Get `url`. Raises an OSError for no answer, and for an answer that is an error."""
    import urllib.request

    urllib.request.urlopen(url, timeout=TIMEOUT_S).close()


def grpc(address: str, ca: str = "") -> None:
    """Ask the server at HOST:PORT for its health, by TLS with a file `ca`. Raises an OSError unless it is SERVING."""
    from pathlib import Path

    from grpc import RpcError, insecure_channel, secure_channel, ssl_channel_credentials
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    credentials = ssl_channel_credentials(Path(ca).read_bytes()) if ca else None
    with secure_channel(address, credentials) if credentials else insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except RpcError as error:
            raise ConnectionError(f"{error.code().name}: {error.details()}") from error
    if answer.status != answer.SERVING:
        raise ConnectionError(answer.ServingStatus.Name(answer.status))


def main(arguments: list[str]) -> int:
    """Run one check; returns the exit code."""
    kind, targets = arguments[:1], arguments[1:]
    if kind not in (["http"], ["grpc"]) or not 1 <= len(targets) <= 1 + (kind == ["grpc"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        http(*targets) if kind == ["http"] else grpc(*targets)
    except OSError as error:
        print(f"{targets[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
