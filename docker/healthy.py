"""Is a service well? For the health checks of docker-compose.yml: exit code 0, or 1 with one line on stderr.

python docker/healthy.py http http://mlflow:5000/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default
python docker/healthy.py grpc 127.0.0.1:8001      (grpc.health.v1 must say SERVING)
"""

import sys

TIMEOUT_S = 4.0


def http(url: str) -> None:
    """Get `url`. Raises an OSError for no answer, and for an answer that is an error."""
    import urllib.request

    urllib.request.urlopen(url, timeout=TIMEOUT_S).close()


def grpc(address: str) -> None:
    """Ask the server at HOST:PORT for its health. Raises `ConnectionError` unless it is SERVING."""
    from grpc import RpcError, insecure_channel
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except RpcError as error:
            raise ConnectionError(f"{error.code().name}: {error.details()}") from error
    if answer.status != answer.SERVING:
        raise ConnectionError(answer.ServingStatus.Name(answer.status))


CHECKS = {"http": http, "grpc": grpc}


def main(arguments: list[str]) -> int:
    """Run one check; returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in CHECKS:
        print(__doc__, file=sys.stderr)
        return 2
    kind, target = arguments
    try:
        CHECKS[kind](target)
    except OSError as error:
        print(f"{target}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
