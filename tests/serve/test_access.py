"""Tokens: who may call what, through a real server; what a token file may hold; what a person is told."""

import asyncio
import logging
import signal
from hashlib import sha256

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from data.cli import run as run_main
from data.errors import InputError
from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb
from serve import access, client
from serve.config import Connection, ScoreConfig, ServerConfig
from serve.lifecycle import ScoringServer
from serve.scoring import score
from serve.security_config import is_loopback
from serve.tokens import parse_tokens
from tests.serve.in_process import serving

Code = grpc.StatusCode
SECRETS = {name: sha256(name.encode()).hexdigest() for name in ("all", "scorer", "reader", "new")}
BOOK = f"""
# comment
all     score,metadata,admin   {SECRETS["all"]}
scorer  score                  sha256:{sha256(SECRETS["scorer"].encode()).hexdigest()}
reader  metadata               {SECRETS["reader"]}
"""
SCORE, MODEL = "/tailacc.v1.Scoring/Score", "/tailacc.v1.Scoring/GetModel"
INFERENCE = "/inference.GRPCInferenceService/"
LOAD = INFERENCE + "RepositoryModelLoad"


@pytest.fixture(autouse=True)
def no_tokens_from_outside(monkeypatch):
    for name in ("TAILACC_TOKENS", "TAILACC_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(run_async, model_file):
    """Run `scenario(server, channel)` with a server that has these tokens; `start`: with its model."""

    def run(scenario, tokens="", start=True):
        async def whole():
            async with serving(model_file, started=start, tokens=tokens) as (server, channel):
                return await scenario(server, channel)

        return run_async(whole())

    return run


def _bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


async def _code(channel, method, metadata=None, message=b"") -> tuple[grpc.StatusCode, str]:
    try:
        await channel.unary_unary(method)(message, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return Code.OK, ""


def _score_request(encode) -> bytes:
    return pb.ScoreRequest(images=[pb.Image(id="a", content=encode(0))]).SerializeToString()


def test_access__each_group_opens_its_calls_alone(served, secret_file, encode):
    message = _score_request(encode)
    wanted = {
        (SCORE, "scorer"): Code.OK,
        (SCORE, "reader"): Code.PERMISSION_DENIED,
        (MODEL, "scorer"): Code.PERMISSION_DENIED,
        (MODEL, "reader"): Code.OK,
        (INFERENCE + "ModelInfer", "scorer"): Code.INVALID_ARGUMENT,
        (INFERENCE + "ModelInfer", "reader"): Code.PERMISSION_DENIED,
        (INFERENCE + "ServerMetadata", "scorer"): Code.PERMISSION_DENIED,
        (INFERENCE + "ServerMetadata", "reader"): Code.OK,
        (LOAD, "scorer"): Code.PERMISSION_DENIED,
        (LOAD, "reader"): Code.PERMISSION_DENIED,
        (LOAD, "all"): Code.UNIMPLEMENTED,
        ("/tailacc.v1.Scoring/Nothing", "scorer"): Code.PERMISSION_DENIED,
        ("/tailacc.v1.Scoring/Nothing", "all"): Code.UNIMPLEMENTED,
    }

    async def scenario(server, channel):
        got = {}
        for method, name in wanted:
            sent = message if method == SCORE else b""
            code, words = await _code(channel, method, _bearer(SECRETS[name]), sent)
            got[method, name] = code
            if code is Code.PERMISSION_DENIED:
                assert words.startswith(f"the token '{name}' is not for calls of the group ")
                assert SECRETS[name] not in words
        return got

    assert served(scenario, secret_file(BOOK)) == wanted


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ((), "this server asks for a token"),
        (_bearer("0" * 64), "the token is none of this server's"),
        (_bearer(SECRETS["all"][:-1]), "the token is none of this server's"),
        (_bearer(SECRETS["all"] + "0"), "the token is none of this server's"),
        (_bearer(""), "the token is none of this server's"),
        ((("authorization", f"Basic {SECRETS['all']}"),), "must be 'Bearer TOKEN'"),
        ((("authorization", SECRETS["all"]),), "must be 'Bearer TOKEN'"),
        (_bearer(sha256(SECRETS["scorer"].encode()).hexdigest()), "the token is none of this server's"),
    ],
)
def test_access__no_call_without_the_right_token(served, secret_file, metadata, words):
    async def scenario(server, channel):
        for method in (*access.GROUP_OF, LOAD, "/tailacc.v1.Scoring/Nothing"):
            code, details = await _code(channel, method, metadata)
            assert (method, code) == (method, Code.UNAUTHENTICATED)
            assert words in details
            assert not [secret for secret in SECRETS.values() if secret[:16] in details]

    served(scenario, secret_file(BOOK))


def test_access__health_and_readiness_are_open_and_nothing_else(served, secret_file):
    async def scenario(server, channel):
        answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        assert health_pb2.HealthCheckResponse.FromString(answer).status == 1
        async for answer in channel.unary_stream("/grpc.health.v1.Health/Watch")(b""):
            assert health_pb2.HealthCheckResponse.FromString(answer).status == 1
            break
        for name in ("ServerLive", "ServerReady", "ModelReady"):
            assert await _code(channel, INFERENCE + name) == (Code.OK, "")
        request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
            iter([request]), metadata=_bearer(SECRETS["scorer"])
        )
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await call.read()
        assert info.value.code() is Code.PERMISSION_DENIED

    served(scenario, secret_file(BOOK))
    assert len(access.OPEN) == 5


def test_access__every_call_of_our_services_has_a_group():
    """One that is forgotten needs "admin", which nobody has for a call that scores."""
    services = {
        "/tailacc.v1.Scoring/": pb.DESCRIPTOR.services_by_name["Scoring"],
        INFERENCE: oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    }
    ours = {prefix + method.name for prefix, service in services.items() for method in service.methods}
    listed = {name for name in (*access.GROUP_OF, *access.OPEN) if name.startswith(tuple(services))}
    assert listed == ours


def test_access__what_changes_the_server_is_off_without_tokens(served):
    async def scenario(server, channel):
        for name in ("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"):
            assert (await _code(channel, INFERENCE + name))[0] is Code.UNIMPLEMENTED

    served(scenario)


def test_access__without_tokens_nothing_asks_for_one(served, encode):
    async def scenario(server, channel):
        assert server.security.interceptors == []
        assert await _code(channel, SCORE, message=_score_request(encode)) == (Code.OK, "")

    served(scenario)


def test_access__a_refused_call_is_counted_and_its_message_not_read(served, secret_file):
    """Names that a stranger makes up are one row of the counts; a message above all limits is never taken."""

    async def scenario(server, channel):
        for number in range(5):
            await _code(channel, f"/made.up/Name{number}")
        code, _ = await _code(channel, SCORE, message=bytes(200 << 20))
        assert code is Code.UNAUTHENTICATED
        return server.calls.codes

    assert served(scenario, secret_file(BOOK)) == {
        ("other", "UNAUTHENTICATED"): 5,
        (SCORE[1:], "UNAUTHENTICATED"): 1,
    }


def test_access__the_file_is_read_again(served, secret_file, caplog):
    """What breaks a rule is said once and changes nothing. No log holds a secret."""
    caplog.set_level(logging.INFO, "serve")
    path = secret_file(BOOK)

    async def scenario(server, channel):
        server.security.refresh()
        assert "tokens" not in caplog.text
        secret_file(f"broken,line {SECRETS['new']} admin")
        server.security.refresh()
        server.security.refresh()
        assert caplog.text.count("the old ones stay in use") == 1
        assert (await _code(channel, MODEL, _bearer(SECRETS["reader"])))[0] is Code.OK
        secret_file(f"late metadata {SECRETS['new']}\n")
        server.security.refresh()
        assert (await _code(channel, MODEL, _bearer(SECRETS["reader"])))[0] is Code.UNAUTHENTICATED
        assert (await _code(channel, MODEL, _bearer(SECRETS["new"])))[0] is Code.OK
        secret_file(BOOK, mode=0o644)
        server.security.refresh()
        assert (await _code(channel, MODEL, _bearer(SECRETS["reader"])))[0] is Code.UNAUTHENTICATED

    served(scenario, path)
    assert "every user of this machine may open it" in caplog.text
    assert not [secret for secret in SECRETS.values() if secret in caplog.text]


def test_access__the_server_itself_looks_for_a_new_file(served, secret_file):
    path = secret_file(BOOK)

    async def scenario(server, channel):
        secret_file(f"late metadata {SECRETS['new']}\n")
        while (await _code(channel, MODEL, _bearer(SECRETS["new"])))[0] is not Code.OK:
            await asyncio.sleep(0.05)

    served(scenario, path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold 1 to 100 tokens, got 0"),
        ("# nothing\n", "must hold 1 to 100 tokens, got 0"),
        ("a score", "line 1 must be NAME GROUPS SECRET with blanks between them, got 2 parts"),
        (f"\na/b score {SECRETS['new']}", "line 2: the name must be"),
        (f"a {SECRETS['new']} score", "line 1: the groups must be of score, metadata, admin"),
        (f"a score, {SECRETS['new']}", "line 1: the groups must be of score, metadata, admin"),
        ("a score tooshort", "line 1: the secret must be 20 to 512"),
        ("a score sha256:abcd", "line 1: the secret must be 20 to 512"),
        (f"a score {SECRETS['new']}\na admin {SECRETS['all']}", "line 2: its name stands in an earlier line"),
        (
            f"a score {SECRETS['new']}\nb admin {SECRETS['new']}",
            "line 2: its secret stands in an earlier line",
        ),
        ("\n".join(f"n{n} score {n:064}" for n in range(101)), "must hold 1 to 100 tokens, got 101"),
    ],
)
def test_parse_tokens__names_the_line_and_nothing_that_stands_in_it(text, words):
    with pytest.raises(InputError) as info:
        parse_tokens(text, "FILE")
    assert words in str(info.value)
    assert "\n" not in str(info.value)
    for part in text.split():
        assert len(part) < 8 or part not in str(info.value)


def test_parse_tokens__no_secret_in_what_is_printed():
    tokens = parse_tokens(BOOK, "FILE")
    assert [(token.name, sorted(token.groups)) for token in tokens] == [
        ("all", ["admin", "metadata", "score"]),
        ("scorer", ["score"]),
        ("reader", ["metadata"]),
    ]
    assert repr(tokens) == "(Token(all), Token(scorer), Token(reader))"


def test_server__tokens_from_the_environment(served, monkeypatch, secret_file):
    monkeypatch.setenv("TAILACC_TOKENS", BOOK)

    async def scenario(server, channel):
        assert (await _code(channel, MODEL))[0] is Code.UNAUTHENTICATED
        assert (await _code(channel, MODEL, _bearer(SECRETS["reader"])))[0] is Code.OK

    served(scenario)
    with pytest.raises(InputError, match="are both set"):
        served(scenario, secret_file(BOOK))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o777])
def test_server__a_token_file_that_others_may_open_is_refused(served, secret_file, mode):
    path = secret_file(BOOK, mode=mode)
    with pytest.raises(InputError, match=r"every user of this machine may open it .* chmod 600"):
        served(None, path)


def test_server__no_such_token_file(served, tmp_path):
    with pytest.raises(InputError, match=r"--tokens: cannot read .*nothing: No such file"):
        served(None, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("listen", "warned"), [("127.0.0.1:0", False), ("localhost:0", False), ("0.0.0.0:0", True)]
)
def test_server__says_when_others_can_reach_it(run_async, model_file, caplog, listen, warned):
    async def scenario():
        server = ScoringServer(ServerConfig(model=str(model_file), listen=listen, device="cpu", threads=1))
        await server.bind()
        await server.stop(0)

    run_async(scenario())
    lines = [record.message for record in caplog.records if "other machines" in record.message]
    assert len(lines) == warned
    if warned:
        assert "without TLS (--tls.certificate, --tls.key)" in lines[0]
        assert "without tokens (--tokens, or TAILACC_TOKENS)" in lines[0]


def test_server__listens_on_the_loopback_unless_told():
    assert is_loopback(ServerConfig().listen.rpartition(":")[0])
    assert [is_loopback(host) for host in ("127.0.0.9", "[::1]", "0.0.0.0", "[::]", "192.0.2.1")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_server__no_secret_on_stderr(start_server, secret_file):
    """Banner, access log and messages of a process, with the tokens used rightly and wrongly."""
    server = start_server("--tokens", secret_file(BOOK), "--access-log")
    with grpc.insecure_channel(server.address) as channel:
        ask = channel.unary_unary(MODEL)
        ask(b"", metadata=_bearer(SECRETS["reader"]), timeout=20)
        for secret in (SECRETS["scorer"], SECRETS["new"]):
            with pytest.raises(grpc.RpcError):
                ask(b"", metadata=_bearer(secret), timeout=20)
    code, out, errors = server.finish(signal.SIGTERM)
    assert (code, out) == (0, "")
    assert "access   no TLS; tokens of " in errors
    assert "UNAUTHENTICATED" in errors
    assert not [secret for secret in SECRETS.values() if secret in errors]


def _client(address, images, out, **fields):
    connection = Connection(server=address, connect_s=20, **fields)
    return score(ScoreConfig(connection=connection, images=str(images), out=out))


def test_client__token_from_a_file_or_the_environment(
    served, secret_file, image_folder, tmp_path, monkeypatch
):
    images = image_folder(3)

    async def scenario(server, channel):
        token = secret_file(SECRETS["all"] + "\n", "token")
        assert await _client(server.address, images, tmp_path / "a.parquet", token_file=token) == 0
        monkeypatch.setenv("TAILACC_TOKEN", SECRETS["all"])
        assert await _client(server.address, images, tmp_path / "b.parquet") == 0

    served(scenario, secret_file(BOOK))
    for manifest in tmp_path.glob("*.manifest.json"):
        assert SECRETS["all"] not in manifest.read_text()


def test_client__a_refusal_is_one_line(served, secret_file, image_folder, tmp_path, monkeypatch, capsys):
    images = image_folder(1)
    both = f"part metadata {SECRETS['new']}\n"

    async def scenario(server, channel):
        out = str(tmp_path / "s.parquet")
        arguments = ["score", "--server", server.address, "--images", str(images), "--out", out]
        said = {}
        for name, secret in (
            ("none", ""),
            ("wrong", "0" * 64),
            ("scorer", SECRETS["scorer"]),
            ("part", SECRETS["new"]),
        ):
            monkeypatch.setenv("TAILACC_TOKEN", secret)
            code = await asyncio.to_thread(run_main, client.main, arguments)
            lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1
            assert not (secret and secret in lines[0])
            said[name] = (code, lines[0])
        return said

    said = served(scenario, secret_file(BOOK + both))
    assert [said[name][0] for name in ("none", "wrong", "scorer", "part")] == [2, 2, 2, 1]
    assert "UNAUTHENTICATED: this server asks for a token" in said["none"][1]
    assert "UNAUTHENTICATED: the token is none of this server's" in said["wrong"][1]
    assert "PERMISSION_DENIED: the token 'scorer' is not for calls of the group metadata" in said["scorer"][1]
    assert "PERMISSION_DENIED: the token 'part' is not for calls of the group score" in said["part"][1]


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", 0o600, "must hold one token of visible characters"),
        ("two words", 0o600, "must hold one token of visible characters"),
        (SECRETS["new"], 0o644, "every user of this machine may open it"),
    ],
)
def test_client__a_token_file_that_is_none(run_async, secret_file, image_folder, tmp_path, text, mode, words):
    path = secret_file(text, "token", mode)
    with pytest.raises(InputError, match=words) as info:
        run_async(_client("127.0.0.1:9", image_folder(1), tmp_path / "s.parquet", token_file=path))
    assert not text or text not in str(info.value)


def test_client__a_token_without_tls_over_a_network_is_said(monkeypatch, capsys):
    from serve.channel import Channels

    monkeypatch.setenv("TAILACC_TOKEN", SECRETS["new"])
    Channels(Connection(server="127.0.0.1:8001,192.0.2.1:8001"))
    said = capsys.readouterr().err
    assert (
        said
        == "warning: the token goes to 192.0.2.1:8001 without TLS (--tls.ca FILE): it can be read on its way\n"
    )
