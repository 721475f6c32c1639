"""Private keys by OSSL_STORE: TSS2 PEM and persistent handles through the tpm2 provider, software PEM without it."""

from __future__ import annotations

import base64
import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.errors import CredentialError, ForeignKeyError, HandleNotFoundError, PemError, TpmMtlsError, UsageError
from tpm_mtls.files import read_capped
from tpm_mtls.key_reference import KeyFile, PersistentHandle, pem_key_label
from tpm_mtls.openssl.library import UI_READER, openssl, take_errors
from tpm_mtls.response_codes import describe, tpm_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tpm_mtls.authorization import Secret
    from tpm_mtls.key_reference import KeyReference
    from tpm_mtls.openssl.library import QueuedError
    from tpm_mtls.openssl.provider import TpmConnection

_SIGNATURE_LIMIT = 1024  # bytes; RSA-4096 needs 512
_TEST_MESSAGE = b"tpm-mtls: a test signature"


@dataclass(frozen=True)
class LoadedKey:
    """A private key (``EVP_PKEY *``) of which the holder owns one reference.

    Attributes:
        pkey: its address.
        asked: whether loading it asked for an authorization value or passphrase.
    """

    pkey: int
    asked: bool


def load_tpm_key(
    key: KeyReference, connection: TpmConnection, authorization: Secret | None, *, expected: str
) -> LoadedKey:
    """The TPM key ``key``: 2 or 3 TPM commands.

    Args:
        key: which one.
        connection: where it is.
        authorization: its authorization value, if it has one.
        expected: its type according to its certificate (`key_type`). Without that the provider would load an RSA key
            twice, because it is first tried as an EC key.

    Raises:
        TpmMtlsError: what the TPM answered, by class.
        PemError: the file is damaged.
        StorageError: it cannot be read.
    """
    with _answering(authorization, empty=True) as (method, asked):
        if isinstance(key, PersistentHandle):
            pkey = _from_handle(f"{key}?pass" if authorization else str(key), connection.libctx, method)
        else:
            pkey = _from_pem(_key_block(key), connection.libctx, method, expected)
        errors = take_errors()
        if pkey is None and isinstance(key, KeyFile) and not any(error.response_code for error in errors):
            pkey = _from_pem(_key_block(key), connection.libctx, method)  # of another type than its certificate
            errors = take_errors()
        if pkey is None:
            raise _tpm_key_error(key, connection, errors)
    if isinstance(key, PersistentHandle):
        # The ESAPI has one object per handle and does not count its users: freeing this key would take it away from
        # every other context with the same key. It takes no room in the TPM, so it is never freed.
        openssl().EVP_PKEY_up_ref(pkey)
    return LoadedKey(pkey, bool(asked))


def load_software_key(key: KeyFile, passphrase: Secret | None) -> LoadedKey:
    """The key in the PEM file ``key``, decrypted with ``passphrase`` if it is encrypted.

    Raises:
        UsageError: it is encrypted and there is no passphrase.
        CredentialError: the passphrase is wrong.
        PemError: the file is damaged.
        StorageError: it cannot be read.
    """
    with _answering(passphrase, empty=False) as (method, asked):
        pkey = _from_pem(_key_block(key), None, method)
        if pkey is not None:
            return LoadedKey(pkey, bool(asked))
        errors = take_errors()
    if asked and passphrase is None:
        raise UsageError(f"the key {key} is encrypted", hint="give its passphrase: prompt, file:F or credential:NAME")
    if asked:
        raise CredentialError(f"the key {key} cannot be decrypted: wrong passphrase", hint="give the right one")
    raise _damaged(key, errors)


def _key_block(key: KeyFile) -> bytes:
    """The first private key in the file, which may hold its certificate too."""
    data = read_capped(key.path)
    label = pem_key_label(data, str(key))
    end = b"-----END " + label + b"-----"
    start = data.index(b"-----BEGIN " + label + b"-----")
    return data[start : data.index(end, start)] + end + b"\n"


def _from_pem(block: bytes, libctx: int | None, ui_method: int, expected: str = "") -> int | None:
    # by a decoder and not by a store, which would throw away what the provider says about a failure
    library = openssl()
    pkey = ctypes.c_void_p()
    decoder = library.OSSL_DECODER_CTX_new_for_pkey(
        ctypes.byref(pkey), b"PEM", None, expected.encode() or None, 0, libctx, None
    )
    bio = library.BIO_new_mem_buf(block, len(block))
    try:
        library.OSSL_DECODER_CTX_set_passphrase_ui(decoder, ui_method, None)
        library.OSSL_DECODER_from_bio(decoder, bio)
    finally:
        library.BIO_free(bio)
        library.OSSL_DECODER_CTX_free(decoder)
    return pkey.value


def _from_handle(uri: str, libctx: int, ui_method: int) -> int | None:
    library = openssl()
    store = library.OSSL_STORE_open_ex(uri.encode(), libctx, None, ui_method, None, None, None, None)
    if not store:
        return None
    try:
        info = library.OSSL_STORE_load(store)
        if not info:
            return None
        pkey: int | None = library.OSSL_STORE_INFO_get1_PKEY(info)
        library.OSSL_STORE_INFO_free(info)
        return pkey
    finally:
        library.OSSL_STORE_close(store)


@contextmanager
def _answering(secret: Secret | None, *, empty: bool) -> Iterator[tuple[int, list[bool]]]:
    """A UI method that answers with ``secret`` (or nothing at all), and a list that fills when it was asked."""
    library = openssl()
    asked: list[bool] = []
    value = secret.value if secret else b""

    @UI_READER  # type: ignore[untyped-decorator]  # ctypes makes the type at run time
    def reader(ui: int, prompt: int) -> int:
        asked.append(True)
        if secret is None and not empty:
            return -1
        return 1 if library.UI_set_result_ex(ui, prompt, value, len(value)) == 0 else 0

    library.ERR_clear_error()
    method = library.UI_create_method(b"tpm-mtls")
    library.UI_method_set_reader(method, ctypes.cast(reader, ctypes.c_void_p))
    try:
        yield method, asked
    finally:
        library.UI_destroy_method(method)


def _tpm_key_error(key: KeyReference, connection: TpmConnection, errors: list[QueuedError]) -> TpmMtlsError:
    for error in errors:
        rc = error.response_code
        if rc is None:
            continue
        answer = tpm_error(rc, doing=f"load the key {key}", tcti=connection.tcti)
        if error.reason == "cannot load parent" and isinstance(answer, HandleNotFoundError):
            return ForeignKeyError(
                f"cannot load the key {key}: its parent is not in this TPM ({describe(rc)})",
                hint="use it on the device that made it; if this is the one, the TPM was cleared: make a new key",
                rc=rc,
            )
        return answer
    return _damaged(key, errors)


def _damaged(key: KeyReference, errors: list[QueuedError]) -> PemError:
    if isinstance(key, KeyFile) and key.is_tss2() and (fields := _more_fields(_key_block(key))):
        return PemError(
            f"the key {key} carries {' and '.join(fields)} inside, which OpenSSL's tpm2 provider does not read",
            hint="use the file that it was exported from; a policy lies beside that, as a file NAME.policy.json",
        )
    return PemError(
        f"the key {key} is damaged: {'; '.join(map(str, errors))}", hint="copy the file again, or make a new key"
    )


def _more_fields(block: bytes) -> list[str]:
    """Which of the fields [1] to [5] are in a ``TSS2 PRIVATE KEY`` (ASN.1 Specification for TPM 2.0 Key Files, 3)."""
    names = {0xA1: "a policy", 0xA2: "a secret", 0xA3: "policies", 0xA4: "a description", 0xA5: "an rsaParent field"}
    try:
        der = base64.b64decode(b"".join(block.splitlines()[1:-1]))
    except ValueError:
        return []
    present = [tag for tag, _ in _der_elements(b"".join(content for _, content in _der_elements(der)))]
    return [names[tag] for tag in present if tag in names]


def _der_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of one element after the other, as far as ``data`` is DER."""
    while len(data) > 1:
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        yield data[0], data[start : start + size]
        data = data[start + size :]


@contextmanager
def freeing(key: LoadedKey) -> Iterator[None]:
    """Gives the holder's reference up after the block; the last one flushes a key that was loaded into the TPM."""
    try:
        yield
    finally:
        openssl().EVP_PKEY_free(key.pkey)


def key_type(pkey: int) -> str:
    """OpenSSL's name for the key's type: ``EC`` or ``RSA``."""
    name: bytes = openssl().EVP_PKEY_get0_type_name(pkey)
    return name.decode()


def same_public(one: int, other: int) -> bool:
    """Whether two keys (``EVP_PKEY *``) have the same public key; no TPM is asked."""
    same = bool(openssl().EVP_PKEY_eq(one, other) == 1)
    openssl().ERR_clear_error()
    return same


def sign_test_message(pkey: int, libctx: int | None, failed: Callable[[int | None, str], TpmMtlsError]) -> bytes:
    """A signature over a fixed message with the private key: 3 TPM commands.

    Raises:
        TpmMtlsError: what ``failed`` makes of the response code (none when there is none) and OpenSSL's text.
    """
    library = openssl()
    library.ERR_clear_error()
    context = library.EVP_MD_CTX_new()
    try:
        signature = ctypes.create_string_buffer(_SIGNATURE_LIMIT)
        length = ctypes.c_size_t(_SIGNATURE_LIMIT)
        if (
            library.EVP_DigestSignInit_ex(context, None, b"SHA256", libctx, None, pkey, None) == 1
            and library.EVP_DigestSign(context, signature, ctypes.byref(length), _TEST_MESSAGE, len(_TEST_MESSAGE)) == 1
        ):
            return signature.raw[: length.value]
    finally:
        library.EVP_MD_CTX_free(context)
    errors = take_errors()
    codes = [error.response_code for error in errors if error.response_code is not None]
    raise failed(codes[0] if codes else None, "; ".join(map(str, errors)))


def verify_test_message(public: int, signature: bytes) -> bool:
    """Whether ``signature`` of `sign_test_message` verifies with the public key, in software."""
    library = openssl()
    context = library.EVP_MD_CTX_new()
    try:
        return bool(
            library.EVP_DigestVerifyInit_ex(context, None, b"SHA256", None, None, public, None) == 1
            and library.EVP_DigestVerify(context, signature, len(signature), _TEST_MESSAGE, len(_TEST_MESSAGE)) == 1
        )
    finally:
        library.EVP_MD_CTX_free(context)
        library.ERR_clear_error()
