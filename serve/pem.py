"""Certificates and keys in PEM: whether they belong together, before gRPC gets them, which would only log it."""

import os
import ssl

from data.errors import InputError


def check_pair(certificate: bytes, key: bytes, names: str) -> None:
    """Raise `InputError` unless `key` is the first certificate's private key. `names`: which files these are."""
    for what, marker, pem in (
        ("certificate", b"CERTIFICATE", certificate),
        ("private key", b"PRIVATE KEY", key),
    ):
        if marker + b"-----" not in pem:
            raise InputError(f"{names}: no {what} in PEM there (-----BEGIN {marker.decode()}-----)")
    if b"ENCRYPTED" in key:
        raise InputError(
            f"{names}: the key has a password; it must be stored without one (openssl pkey -in KEY -out NEWKEY)"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # `ssl` reads files alone. These live in memory: the very bytes that gRPC gets are checked, and no key is written.
    files: list[int] = []
    try:
        files.extend(map(_memory_file, (certificate, key)))
        chain, secret = (f"/proc/self/fd/{file}" for file in files)
        context.load_cert_chain(chain, secret)
    except (
        OSError,
        ValueError,
    ) as error:  # `ssl.SSLError` is an OSError; the machine may also have no file left
        raise InputError(f"{names}: {_reason(error)}") from error
    finally:
        for file in files:
            os.close(file)


def check_authorities(pem: bytes, name: str) -> None:
    """Raise `InputError` unless there is at least one certificate in `pem`."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise InputError(f"{name}: no certificate in PEM there (-----BEGIN CERTIFICATE-----)") from error


def _memory_file(content: bytes) -> int:
    file = os.memfd_create("pem")
    with os.fdopen(os.dup(file), "wb") as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate (where both are being replaced, the second is to come)"
    return f"not a certificate with its key that OpenSSL can read ({reason or error})"
