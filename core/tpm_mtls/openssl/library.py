"""The OpenSSL that Python's ``_ssl`` is linked to: found, declared, and its error queue read."""

from __future__ import annotations

import _ssl
import ctypes
import functools
import re
import ssl
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_ubyte, c_uint, c_ulong, c_void_p
from dataclasses import dataclass
from typing import Any

from tpm_mtls.errors import OpensslLinkageError

_MINIMUM = 0x30000000  # OpenSSL 3.0.0: the first with providers

_P = c_void_p

# name: (result, *arguments), as in the manual pages of section 3 of OpenSSL 3.0
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "OpenSSL_version": (c_char_p, c_int),
    "OPENSSL_info": (c_char_p, c_int),
    "ERR_clear_error": (None,),
    "ERR_get_error_all": (c_ulong, POINTER(_P), POINTER(c_int), POINTER(_P), POINTER(c_char_p), POINTER(c_int)),
    "ERR_reason_error_string": (c_char_p, c_ulong),
    "OSSL_LIB_CTX_new": (_P,),
    "OSSL_LIB_CTX_free": (None, _P),
    "OSSL_PROVIDER_set_default_search_path": (c_int, _P, c_char_p),
    "OSSL_PROVIDER_load": (_P, _P, c_char_p),
    "OSSL_PROVIDER_available": (c_int, _P, c_char_p),
    "OSSL_PROVIDER_get_params": (c_int, _P, _P),
    "OSSL_STORE_open_ex": (_P, c_char_p, _P, c_char_p, _P, _P, _P, _P, _P),
    "OSSL_STORE_load": (_P, _P),
    "OSSL_STORE_close": (c_int, _P),
    "OSSL_STORE_INFO_get1_PKEY": (_P, _P),
    "OSSL_STORE_INFO_free": (None, _P),
    "OSSL_DECODER_CTX_new_for_pkey": (_P, POINTER(_P), c_char_p, c_char_p, c_char_p, c_int, _P, c_char_p),
    "OSSL_DECODER_CTX_set_passphrase_ui": (c_int, _P, _P, _P),
    "OSSL_DECODER_from_bio": (c_int, _P, _P),
    "OSSL_DECODER_CTX_free": (None, _P),
    "UI_create_method": (_P, c_char_p),
    "UI_destroy_method": (None, _P),
    "UI_method_set_reader": (c_int, _P, _P),
    "UI_set_result_ex": (c_int, _P, _P, c_char_p, c_int),
    "BIO_new_mem_buf": (_P, c_char_p, c_int),
    "BIO_free": (c_int, _P),
    "BIO_ctrl": (c_long, _P, c_int, c_long, _P),
    "EVP_PKEY_free": (None, _P),
    "EVP_PKEY_up_ref": (c_int, _P),
    "EVP_PKEY_eq": (c_int, _P, _P),
    "EVP_PKEY_get0_type_name": (c_char_p, _P),
    "EVP_PKEY_set_type": (c_int, _P, c_int),
    "EVP_MD_CTX_new": (_P,),
    "EVP_MD_CTX_free": (None, _P),
    "EVP_DigestSignInit_ex": (c_int, _P, _P, c_char_p, _P, c_char_p, _P, _P),
    "EVP_DigestSign": (c_int, _P, c_char_p, POINTER(c_size_t), c_char_p, c_size_t),
    "EVP_DigestVerifyInit_ex": (c_int, _P, _P, c_char_p, _P, c_char_p, _P, _P),
    "EVP_DigestVerify": (c_int, _P, c_char_p, c_size_t, c_char_p, c_size_t),
    "PEM_read_bio_X509": (_P, _P, _P, _P, c_char_p),
    "X509_free": (None, _P),
    "X509_get0_pubkey": (_P, _P),
    "X509_get0_notBefore": (_P, _P),
    "X509_get0_notAfter": (_P, _P),
    "X509_get_subject_name": (_P, _P),
    "X509_NAME_cmp": (c_int, _P, _P),
    "X509_NAME_get0_der": (c_int, _P, POINTER(_P), POINTER(c_size_t)),
    "X509_NAME_oneline": (c_char_p, _P, c_char_p, c_int),
    "X509_EXTENSION_get_data": (_P, _P),
    "PEM_read_bio_X509_CRL": (_P, _P, _P, _P, c_char_p),
    "d2i_X509_CRL_bio": (_P, _P, _P),
    "X509_CRL_free": (None, _P),
    "X509_CRL_get_issuer": (_P, _P),
    "X509_CRL_get0_lastUpdate": (_P, _P),
    "X509_CRL_get0_nextUpdate": (_P, _P),
    "X509_CRL_get_signature_nid": (c_int, _P),
    "X509_CRL_get_ext_by_NID": (c_int, _P, c_int, c_int),
    "X509_CRL_get_ext": (_P, _P, c_int),
    "X509_CRL_get0_by_cert": (c_int, _P, POINTER(_P), _P),
    "X509_CRL_verify": (c_int, _P, _P),
    "OBJ_find_sigid_algs": (c_int, c_int, POINTER(c_int), POINTER(c_int)),
    "X509_STORE_new": (_P,),
    "X509_STORE_free": (None, _P),
    "X509_STORE_add_cert": (c_int, _P, _P),
    "X509_STORE_add_crl": (c_int, _P, _P),
    "X509_STORE_get1_all_certs": (_P, _P),
    "X509_STORE_set_flags": (c_int, _P, c_ulong),
    "X509_STORE_set_verify_cb": (None, _P, _P),
    "X509_STORE_set_ex_data": (c_int, _P, c_int, _P),
    "X509_STORE_get_ex_data": (_P, _P, c_int),
    "X509_STORE_CTX_get_error": (c_int, _P),
    "X509_STORE_CTX_set_error": (None, _P, c_int),
    "X509_STORE_CTX_get_error_depth": (c_int, _P),
    "X509_STORE_CTX_get0_chain": (_P, _P),
    "ASN1_STRING_get0_data": (_P, _P),
    "ASN1_STRING_length": (c_int, _P),
    "ASN1_TIME_to_tm": (c_int, _P, _P),
    "ASN1_TIME_diff": (c_int, POINTER(c_int), POINTER(c_int), _P, _P),
    "OPENSSL_sk_new_null": (_P,),
    "OPENSSL_sk_push": (c_int, _P, _P),
    "OPENSSL_sk_free": (None, _P),
    "OPENSSL_sk_num": (c_int, _P),
    "OPENSSL_sk_value": (_P, _P, c_int),
    "SSL_CTX_get_options": (c_ulong, _P),
    "SSL_CTX_get_verify_mode": (c_int, _P),
    "SSL_CTX_ctrl": (c_long, _P, c_int, c_long, _P),
    "SSL_CTX_get_cert_store": (_P, _P),
    "SSL_CTX_get0_certificate": (_P, _P),
    "SSL_CTX_get0_privatekey": (_P, _P),
    "SSL_CTX_use_cert_and_key": (c_int, _P, _P, _P, _P, c_int),
    "SSL_CTX_set_cert_cb": (None, _P, _P, _P),
    "SSL_CTX_set_session_ticket_cb": (c_int, _P, _P, _P, _P),
    "SSL_ctrl": (c_long, _P, c_int, c_long, _P),
    "SSL_set_session": (c_int, _P, _P),
    "SSL_get_session": (_P, _P),
    "SSL_session_reused": (c_int, _P),
    "SSL_SESSION_dup": (_P, _P),
    "SSL_SESSION_free": (None, _P),
    "SSL_SESSION_get_id": (POINTER(c_ubyte), _P, POINTER(c_uint)),
    "SSL_SESSION_is_resumable": (c_int, _P),
    "SSL_SESSION_get_protocol_version": (c_int, _P),
    "SSL_SESSION_get_time": (c_long, _P),
    "SSL_SESSION_get_timeout": (c_long, _P),
    "SSL_SESSION_set_timeout": (c_long, _P, c_long),
    "SSL_SESSION_get0_peer": (_P, _P),
    "SSL_SESSION_set1_ticket_appdata": (c_int, _P, c_char_p, c_size_t),
    "SSL_SESSION_get0_ticket_appdata": (c_int, _P, POINTER(_P), POINTER(c_size_t)),
    "SSL_SESSION_get_ticket_lifetime_hint": (c_ulong, _P),
}

UI_READER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
"""``int (*reader)(UI *, UI_STRING *)``"""


class Param(ctypes.Structure):
    """``OSSL_PARAM``, see OSSL_PARAM(3)."""

    _fields_ = (
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_void_p),
        ("data_size", c_size_t),
        ("return_size", c_size_t),
    )


@functools.cache
def openssl() -> Any:  # noqa: ANN401 - the functions of a C library
    """Python's OpenSSL with the signatures above; a call releases the GIL.

    Raises:
        OpensslLinkageError: its functions cannot be reached, or it is older than 3.0.
    """
    return bind(getattr(_ssl, "__file__", None))


def bind(module: str | None, *, expected: str = ssl.OPENSSL_VERSION) -> Any:  # noqa: ANN401 - the functions of a C library
    """The OpenSSL that the extension ``module`` is linked to; none stands for the interpreter itself.

    A symbol that is looked up in the module's own handle comes from the libraries that this very module was linked to,
    whatever other OpenSSL is in the process.

    Args:
        module: path of the extension.
        expected: the version that it must have.

    Raises:
        OpensslLinkageError: as `openssl`.
    """
    try:
        library = ctypes.CDLL(module)
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise OpensslLinkageError(
            f"this Python's OpenSSL ({ssl.OPENSSL_VERSION}) cannot be reached: {error}",
            hint="use a Python whose _ssl is linked to a shared OpenSSL 3, such as the distribution's python3",
        ) from error
    version = library.OpenSSL_version(0).decode()
    if ssl.OPENSSL_VERSION_NUMBER < _MINIMUM or version != expected:
        raise OpensslLinkageError(
            f"Python uses {expected}, its module is linked to {version}",
            hint="use a Python whose _ssl is linked to one shared OpenSSL 3",
        )
    return library


@dataclass(frozen=True)
class QueuedError:
    """One entry of OpenSSL's error queue.

    Attributes:
        reason: OpenSSL's or the provider's text for it, such as ``cannot load key``.
        data: what was added to it; the provider writes a TSS response code and its meaning.
    """

    reason: str
    data: str

    @property
    def response_code(self) -> int | None:
        """The TPM's or the TSS's response code (``%i %s`` in tpm2-provider-core.c), if the entry carries one."""
        match = re.match(r"(-?\d{1,10})(?: |$)", self.data)
        return int(match.group(1)) & 0xFFFFFFFF if match else None

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.reason, self.data]))


def take_errors() -> list[QueuedError]:
    """Empties this thread's error queue; the oldest entry, the cause, comes first."""
    library = openssl()
    taken = []
    data = c_char_p()
    while code := library.ERR_get_error_all(None, None, None, ctypes.byref(data), None):
        reason = library.ERR_reason_error_string(code) or b""
        taken.append(QueuedError(reason.decode(errors="replace"), (data.value or b"").decode(errors="replace")))
    return taken
