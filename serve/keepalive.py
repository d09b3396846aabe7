"""Options of gRPC that find a peer which is there no longer, though its connection is: a machine that lost its network
or power, a process that was stopped (SIGSTOP) or swapped out. Without them a call waits for its whole deadline.

gRPC pings over HTTP/2; the answer comes from its own threads, so a server that is busy, or waits for Python's lock,
still answers. https://github.com/grpc/grpc/blob/master/doc/keepalive.md
"""

Options = list[tuple[str, int]]

# What the server takes from any client; less than this between two pings of a connection ends it.
_LEAST_S = 0.2
# After how long without a word from a client the server asks, and how long it waits for the answer.
_ASK_S, _ANSWER_S = 60.0, 20.0


def client_keepalive(silence_s: float) -> Options:
    """While calls are in flight: a ping after two thirds of `silence_s`, and the rest of it for the answer."""
    return [
        ("grpc.keepalive_time_ms", max(round(_LEAST_S * 1500), round(silence_s * 2000 / 3))),
        *_answer_within(max(0.001, silence_s / 3)),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_keepalive() -> Options:
    """Ask silent clients, and let them ask often: gRPC's default is to hang up on a client that pings within 5 min."""
    return [
        ("grpc.keepalive_time_ms", round(_ASK_S * 1000)),
        *_answer_within(_ANSWER_S),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", round(_LEAST_S * 1000)),
    ]


def _answer_within(seconds: float) -> Options:
    # With the first alone gRPC 1.85 waits 60 s: the second's default.
    return [
        ("grpc.keepalive_timeout_ms", round(seconds * 1000)),
        ("grpc.http2.ping_timeout_ms", round(seconds * 1000)),
    ]
