"""Strict reading of JSON: what is not exactly as announced is a `PolicyFileError`."""

from __future__ import annotations

from tpm_mtls_relay.errors import POLICY_DAMAGED, RelayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    JsonObject = dict[str, object]

SIZE_LIMIT = 65536
"""Bytes of a file; one with 64 PCR states has 20,000."""

_HEXADECIMAL = "0123456789abcdef"
_TEXT_LIMIT = 1024


class PolicyFileError(RelayError):
    """A file is not what the text of `policy_file` says."""

    def __init__(self, message: str) -> None:
        super().__init__(f"a policy file is damaged: {message}", POLICY_DAMAGED)


def document(data: bytes, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> JsonObject:
    """The fields of the JSON object that is the file ``data``, of format 1.

    Raises:
        PolicyFileError: it is larger than `SIZE_LIMIT`, no JSON, or has other fields.
    """
    import json  # noqa: PLC0415 - 4 ms, and most keys have no policy

    if len(data) > SIZE_LIMIT:
        raise PolicyFileError(f"more than {SIZE_LIMIT} bytes")
    try:
        # of two fields with the same name the last one would count
        content = json.loads(data.decode(), object_pairs_hook=_object, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise PolicyFileError(f"no JSON ({error})") from error
    fields = fields_of(content, required, optional)
    if integer_of(fields["format"], limit=1 << 16) != 1:
        raise PolicyFileError("a format that this version does not know")
    return fields


def _refuse(text: str) -> object:
    raise PolicyFileError(f"the number {text[:20]}")


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise PolicyFileError("a field occurs twice")
    return fields


def fields_of(value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> JsonObject:
    """The JSON object ``value``, which has all ``required`` fields and no others but the ``optional`` ones."""
    if not isinstance(value, dict):
        raise PolicyFileError("an object is missing")
    missing = set(required) - set(value)
    unknown = set(value) - set(required) - set(optional)
    if missing or unknown:
        raise PolicyFileError(f"fields {sorted(missing)} are missing, {sorted(unknown)} unknown")
    return value


def elements_of(value: object) -> list[object]:
    """The list ``value``; not an empty one."""
    if not isinstance(value, list) or not value:
        raise PolicyFileError("a list is missing or empty")
    return value


def text_of(value: object) -> str:
    """The text ``value``."""
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise PolicyFileError("a text is missing or too long")
    return value


def integer_of(value: object, *, limit: int) -> int:
    """The whole number ``value``, below ``limit`` and not negative."""
    if type(value) is not int or not 0 <= value < limit:  # a bool is an int, too
        raise PolicyFileError("a number is missing or out of its range")
    return value


def bytes_of(value: object, *, limit: int) -> bytes:
    """The bytes whose digits ``value`` are, at most ``limit``."""
    if not isinstance(value, str) or len(value) > 2 * limit or len(value) % 2 or value.strip(_HEXADECIMAL):
        raise PolicyFileError("hexadecimal digits are missing, wrong or too many")
    return bytes.fromhex(value)
