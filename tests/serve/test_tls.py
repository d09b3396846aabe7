"""TLS and mutual TLS through a real server: who gets in, files that change under it, and what a person is told."""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from data.errors import InputError
from proto.tailacc.v1 import scoring_pb2 as pb
from serve.config import Connection, ScoreConfig
from serve.scoring import score
from serve.security_config import ClientTls, ServerTls
from serve.tls import TlsFiles
from tests.serve.in_process import running

MODEL = "/tailacc.v1.Scoring/GetModel"
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_tokens_from_outside(monkeypatch):
    for name in ("TAILACC_TOKENS", "TAILACC_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def _serving(model_file, tls: ServerTls):
    return running(model_file, tls=tls)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


async def _ask(address: str, ca: str, pair: tuple[str, str] | None = None) -> str:
    """The model's name by a connection of its own; "refused" where it is not let in."""
    key, chain = (_read(pair[1]), _read(pair[0])) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(_read(ca), key, chain)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            answer = await channel.unary_unary(MODEL)(b"", timeout=20)
        except grpc.aio.AioRpcError as error:
            return "refused" if error.code() is grpc.StatusCode.UNAVAILABLE else str(error)
    return pb.GetModelResponse.FromString(answer).description


async def _shown(address: str) -> bytes:
    """The certificate that a new connection is shown, in DER; nothing of it is checked."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()


def _der(path: str) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(Path(path).read_text())


def test_tls__only_who_trusts_the_authority_connects(run_async, model_file, make_authority):
    authority, other = make_authority(), make_authority("other")
    certificate, key = authority.issue("server")

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            assert await _ask(server.address, authority.ca) == "mean pool 32 px"
            assert await _ask(server.address, other.ca) == "refused"
            async with grpc.aio.insecure_channel(server.address) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(MODEL)(b"", timeout=20)

    run_async(scenario())


@pytest.mark.parametrize(("version", "taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls__old_versions_are_refused(run_async, model_file, make_authority, version, taken):
    import ssl

    authority = make_authority()
    certificate, key = authority.issue("server")

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            context = ssl.create_default_context(cafile=authority.ca)
            context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
            # OpenSSL itself would otherwise not even offer the old one.
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.set_alpn_protocols(["h2"])
            host, port = server.address.rsplit(":", 1)
            try:
                _, writer = await asyncio.open_connection(host, int(port), ssl=context)
            except (ssl.SSLError, ConnectionError):
                return False
            writer.close()
            return True

    assert run_async(scenario()) is taken


def test_mutual_tls__only_callers_of_the_authority_get_in(run_async, model_file, make_authority):
    authority, callers = make_authority(), make_authority("callers")
    certificate, key = authority.issue("server")
    good, old = callers.issue("good"), callers.issue("old", begins=-5, ends=-1)
    foreign = authority.issue("foreign")

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key, callers.ca)) as server:
            return [await _ask(server.address, authority.ca, pair) for pair in (good, None, old, foreign)]

    assert run_async(scenario()) == ["mean pool 32 px", "refused", "refused", "refused"]


def test_reload__new_files_from_the_next_connection_on(run_async, model_file, make_authority, caplog):
    """A half that does not fit is refused and said once; the old pair serves until both are there."""
    caplog.set_level(logging.INFO, "serve")
    authority = make_authority()
    certificate, key = authority.issue("server")
    first = _der(certificate)

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            assert await _shown(server.address) == first
            new = authority.issue("new")
            second = _der(new[0])
            os.replace(new[0], certificate)
            for _ in range(3):
                assert await _shown(server.address) == first
            os.replace(new[1], key)
            assert await _shown(server.address) == second
            for broken in (b"", b"-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n"):
                Path(certificate).write_bytes(broken)
                assert await _shown(server.address) == second
            os.remove(certificate)
            assert await _shown(server.address) == second
            third = authority.issue("server")
            assert await _shown(server.address) == _der(third[0])

    run_async(scenario())
    messages = [record.getMessage() for record in caplog.records if "TLS: " in record.getMessage()]
    kept = [text for text in messages if "the old ones stay in use" in text]
    assert sum("the key is not that of the certificate" in text for text in kept) >= 1
    assert sum("no certificate in PEM there" in text for text in kept) == 1
    assert sum("No such file" in text for text in kept) == 1
    assert sum("in use from the next connection on" in text for text in messages) == 2
    assert len(set(messages)) >= len(messages) - 2  # each state of the files once
    assert "PRIVATE" not in caplog.text


def test_reload__the_authorities_of_callers_too(run_async, model_file, make_authority):
    authority, one, two = make_authority(), make_authority("one"), make_authority("two")
    certificate, key = authority.issue("server")
    callers = shutil.copy(one.ca, Path(one.ca).with_name("callers.pem"))
    pairs = one.issue("first"), two.issue("second")

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key, str(callers))) as server:
            before = [await _ask(server.address, authority.ca, pair) for pair in pairs]
            os.replace(two.ca, callers)
            after = [await _ask(server.address, authority.ca, pair) for pair in pairs]
            return before, after

    name = "mean pool 32 px"
    assert run_async(scenario()) == ([name, "refused"], ["refused", name])


def test_server__files_that_do_not_fit_are_named(make_authority, tmp_path):
    authority = make_authority()
    certificate, key = authority.issue("server")
    other_key = authority.issue("other")[1]
    locked = tmp_path / "locked.key"
    open_key = tmp_path / "open.key"
    shutil.copy(key, open_key)
    open_key.chmod(0o644)
    from cryptography.hazmat.primitives import serialization

    secret = serialization.load_pem_private_key(_read(key), None)
    locked.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    locked.chmod(0o600)
    for config, words in (
        (ServerTls(certificate, other_key), "the key is not that of the certificate"),
        (ServerTls(key, key), "no certificate in PEM there"),
        (ServerTls(certificate, certificate), "no private key in PEM there"),
        (ServerTls(certificate, str(locked)), "the key has a password"),
        (ServerTls(certificate, str(open_key)), "every user of this machine may open it"),
        (ServerTls(certificate, str(tmp_path / "none")), "--tls.key: cannot read .*none: No such file"),
        (ServerTls(str(tmp_path / "none"), key), "--tls.certificate: cannot read .*none: No such file"),
        (ServerTls(certificate, key, key), "--tls.client-ca .*: no certificate in PEM there"),
    ):
        with pytest.raises(InputError, match=words) as info:
            TlsFiles(config)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (ServerTls(certificate="a"), "--tls.certificate needs --tls.key FILE"),
        (ServerTls(key="a"), "--tls.key needs --tls.certificate FILE"),
        (ServerTls(client_ca="a"), "--tls.client-ca needs --tls.certificate and --tls.key"),
        (ClientTls(certificate="a"), "--tls.certificate needs --tls.key FILE"),
        (ClientTls(certificate="a", key="b"), "--tls.certificate needs --tls.ca FILE"),
        (ClientTls(name="a"), "--tls.name needs --tls.ca FILE"),
    ],
)
def test_options__that_need_each_other(tls, words):
    with pytest.raises(InputError, match=words):
        tls.check()


def _score(address, images, tls: ClientTls, connect_s=20.0):
    connection = Connection(server=address, connect_s=connect_s, tls=tls)
    return score(ScoreConfig(connection=connection, images=str(images), out=images.parent / "s.parquet"))


def test_client__scores_over_mutual_tls(run_async, model_file, make_authority, image_folder):
    authority = make_authority()
    certificate, key = authority.issue("server")
    caller = authority.issue("caller")

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key, authority.ca)) as server:
            return await _score(server.address, image_folder(3), ClientTls(authority.ca, *caller))

    assert run_async(scenario()) == 0


def test_client__the_name_in_the_certificate_may_be_given(
    run_async, model_file, make_authority, image_folder
):
    authority = make_authority()
    certificate, key = authority.issue("server", address="192.0.2.7")
    images = image_folder(2)

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            with pytest.raises(InputError, match=r"its certificate is for another name \(--tls.name NAME"):
                await _score(server.address, images, ClientTls(authority.ca))
            return await _score(server.address, images, ClientTls(authority.ca, name="192.0.2.7"))

    assert run_async(scenario()) == 0


def test_client__a_failed_handshake_says_why(run_async, model_file, make_authority, image_folder):
    authority, other = make_authority(), make_authority("other")
    good, old = authority.issue("server"), authority.issue("old", begins=-5, ends=-1)
    early = authority.issue("early", begins=3, ends=5)
    images = image_folder(1)
    cases = (
        (ServerTls(*good), ClientTls(other.ca), "its certificate is not of an authority in --tls.ca"),
        (ServerTls(*old), ClientTls(authority.ca), "its certificate has expired"),
        (ServerTls(*early), ClientTls(authority.ca), "its certificate is not valid yet"),
        (ServerTls(), ClientTls(authority.ca), "it speaks no TLS"),
    )

    async def scenario():
        for server_tls, tls, words in cases:
            async with _serving(model_file, server_tls) as server:
                with pytest.raises(InputError) as info:
                    await _score(server.address, images, tls)
                assert str(info.value).startswith(f"no connection to {server.address}: {words}")
        # What a server only hangs up on may be for another reason: these are tried again, and then said.
        for server_tls, tls, words in (
            (ServerTls(*good), ClientTls(), "it may want TLS (--tls.ca FILE)"),
            (
                ServerTls(*good, authority.ca),
                ClientTls(authority.ca),
                "it may want a certificate of the client's",
            ),
        ):
            async with _serving(model_file, server_tls) as server:
                with pytest.raises(InputError) as info:
                    await _score(server.address, images, tls, connect_s=0.5)
                assert f"{server.address} closes the connection at" in str(info.value)
                assert words in str(info.value)
                assert "\n" not in str(info.value)

    run_async(scenario())


def test_client__in_a_process_one_line_and_exit_code_2(run_async, model_file, make_authority, image_folder):
    """gRPC's own lines about the handshake do not stand beside ours."""
    authority, other = make_authority(), make_authority("other")
    certificate, key = authority.issue("server")
    images = image_folder(1)

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            return await asyncio.to_thread(
                subprocess.run,
                [
                    sys.executable,
                    str(_ROOT / "serve" / "client.py"),
                    "classify",
                    str(next(images.iterdir())),
                    *("--server", server.address, "--tls.ca", other.ca),
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    done = run_async(scenario())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "its certificate is not of an authority in --tls.ca" in done.stderr


def test_healthy__speaks_tls_where_it_gets_an_authority(run_async, model_file, make_authority):
    authority = make_authority()
    certificate, key = authority.issue("server")
    check = [sys.executable, str(_ROOT / "docker" / "healthy.py"), "grpc"]

    async def scenario():
        async with _serving(model_file, ServerTls(certificate, key)) as server:
            return [
                (
                    await asyncio.to_thread(subprocess.run, [*check, server.address, *more], check=False)
                ).returncode
                for more in ([authority.ca], [])
            ]

    assert run_async(scenario()) == [0, 1]
