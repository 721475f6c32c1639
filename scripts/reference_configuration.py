"""Settings, environment variables, files and places in the TPM, as Markdown.

Names and values come from the sources; what they are for is said here where the sources do not say it for a user.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reference_api import ROOT, Module, attributes, load_module, passages
from reference_units import units_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MADE = "<!-- made by scripts/reference.py: change the sources, or scripts/reference_configuration.py, instead -->"

_READING = re.compile(r"(os\.environ|environment|variables)\.get")
_NAMING = re.compile(r"([A-Z]+_VARIABLES?|ENVIRONMENT)\b.* = ")

VARIABLES = {
    "TPM_MTLS_TCTI": "where the TPM is; `--tcti` goes before it",
    "TPM_MTLS_RELAY": "`auto`, `always` or `never`: when keys are used through the relay; `--relay` goes before it",
    "TPM_MTLS_CONFIG": "the configuration file, instead of `/etc/tpm-mtls/config.toml`; it must be there then",
    "TPM_MTLS_SOCKET": "the agent's socket, for `tpm-mtls secret`",
    "OPENSSL_CONF": "OpenSSL's configuration; `tpm-mtls openssl-env` prints one for programs that are not ours",
    "OPENSSL_MODULES": "the folder with OpenSSL's tpm2 provider, where it is not in OpenSSL's own",
    "TPM2OPENSSL_TCTI": "where OpenSSL's tpm2 provider finds the TPM; set by our programs while they load it",
    "TSS2_LOG": "what libtss2 logs; nothing by default, because errors say it already",
    "XDG_RUNTIME_DIR": "where a user's relays remember what is loaded in the TPM, for the case that they are killed",
    "HTTPS_PROXY": "not used: no connection goes through a proxy; where a server cannot be reached the hint says so",
    "ALL_PROXY": "as HTTPS_PROXY",
    "NO_PROXY": "hosts for which the hint says nothing of a proxy",
    "NO_COLOR": "no colours, if it is set to anything",
    "TERM": "no colours on a terminal called `dumb`",
    "SUDO_USER": "who an operator is in the audit log, for root only",
    "RUNTIME_DIRECTORY": "of a unit: as XDG_RUNTIME_DIR, and before it",
    "CREDENTIALS_DIRECTORY": "of a unit: where `credential:NAME` is read from (LoadCredential=)",
    "NOTIFY_SOCKET": "of a unit: where readiness and status are reported (Type=notify)",
    "WATCHDOG_USEC": "of a unit: how often it must say that it is alive (WatchdogSec=)",
    "WATCHDOG_PID": "of a unit: whom WATCHDOG_USEC is for",
    "LISTEN_FDS": "of a unit: how many sockets systemd opened for it (the .socket unit)",
    "LISTEN_PID": "of a unit: whom LISTEN_FDS is for",
}
"""What each environment variable that is read is for; a test compares them with the sources."""

GIVEN = {"TPM_MTLS_STATE_DIR": "the identity folder, for the program of `agent run --on-renewal`"}
"""What programs that ours start are told."""


@dataclass(frozen=True)
class File:
    """A file or folder.

    Attributes:
        module: where its name is a constant.
        name: that constant; none for a file that is named here.
        mode: its permissions.
        text: what it is.
    """

    module: str
    name: str
    mode: str
    text: str

    def path(self) -> str:
        """As it is called."""
        return constant(self.module, self.name)


IDENTITY = (
    File("tpm_mtls.identity", "RECORD", "0640", "what the device knows about its identity; written last"),
    File("tpm_mtls.identity", "KEY", "0600", "the key, unless it is at a persistent handle"),
    File("tpm_mtls.identity", "CERTIFICATE", "0644", "the device's certificate, then the issuing CA's"),
    File("tpm_mtls.identity", "TRUST", "0644", "the trust anchor: whom the device believes"),
    File("tpm_mtls.identity", "ATTESTATION_KEY", "0600", "the attestation key, which only this TPM can use"),
    File("tpm_mtls_keygen.first_boot_folder", "JOURNAL", "0600", "what an unfinished first boot made; else absent"),
    File("tpm_mtls_keygen.first_boot_folder", "INSTALL", "0600", "a renewal that is being installed; else absent"),
    File("tpm_mtls_agent.storage.secrets_folder", "FOLDER", "0700", "the agent's secrets, which only this TPM opens"),
    File("tpm_mtls_agent.cli", "_AUDIT", "0600", "who asked the agent for what; no names, no values"),
)

RUN = (
    File("tpm_mtls_agent.health.publication", "HEALTH", "0644", "the last health check"),
    File("tpm_mtls_agent.health.publication", "METRICS", "0644", "the same for Prometheus' textfile collector"),
    File("tpm_mtls_agent.health.publication", "MAINTENANCE", "0644", "there while the TPM is ailing; says why"),
    File("tpm_mtls_agent.duties.record", "DUTIES", "0644", "what the agent did last, and does next"),
)

IN_THE_TPM = (
    ("storage root key", "persistent handle", "tpm_mtls.tpm.storage_root", "SRK_HANDLE"),
    ("device keys", "persistent handles from", "tpm_mtls_keygen.keys", "FIRST_HANDLE"),
    ("the identity's copy", "NV indices from", "tpm_mtls_keygen.nv_mirror", "FIRST_INDEX"),
    ("counter of signed policies", "NV index", "tpm_mtls.policy.counters", "DEFAULT_COUNTER"),
    ("the agent's secrets", "NV indices from", "tpm_mtls_agent.storage.slots", "FIRST_INDEX"),
)


def configuration_page() -> str:
    """The page."""
    parts = ["# Configuration", MADE, *_sources(), *_file(), *_variables(), *_allow_list(), *_hardening()]
    parts += [*units_section(), *_latency_models(), *_folders()]
    return "\n\n".join(parts) + "\n"


def constant(module: str, name: str) -> str:
    """The text or number that ``name`` is in the source of ``module``; of a path its text, a number as the TPM's.

    Raises:
        LookupError: it is none.
    """
    for node in load_module(module).tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == name:
            if isinstance(value, ast.Call):
                value = value.args[0]
            if isinstance(value, ast.Constant):
                return f"0x{value.value:08X}" if isinstance(value.value, int) else str(value.value)
    raise LookupError(f"{module} has no constant {name}")


def variables_read() -> set[str]:
    """The environment variables that the sources name where they read the environment."""
    found: set[str] = set()
    for package in ("core", "keygen", "client", "server", "pki", "relay", "agent", "simulator"):
        for path in (ROOT / package).rglob("*.py"):
            found |= set(_variables_in(ast.parse(path.read_text())))
    return found


def _variables_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        named: ast.expr | None = None
        if isinstance(node, ast.Call) and _READING.fullmatch(ast.unparse(node.func)) and node.args:
            named = node.args[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and _NAMING.match(ast.unparse(node)):
            named = node.value
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            named = node.left
        for each in named.elts if isinstance(named, ast.Tuple) else [named]:
            if isinstance(each, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9_]+", str(each.value)):
                yield str(each.value)


def _sources() -> Iterator[str]:
    yield """\
Nothing needs to be configured. What is given goes in this order: an option of the command, an environment variable, the
configuration file, the default. The options are on the [commands' pages](commands/README.md)."""


def _file() -> Iterator[str]:
    module = load_module("tpm_mtls.configuration")
    yield f"## {constant('tpm_mtls.configuration', 'DEFAULT_FILE')}"
    yield "TOML, for all programs of a machine; unknown settings are refused. An example: `packaging/config.toml`."
    values = {"relay": f"`{'`, `'.join(_words(module, 'RelayUse'))}`"}
    rows = []
    for name, text in attributes(module, "Configuration").items():
        variable = f"TPM_MTLS_{name.upper()}"
        before = [f"`--{name.replace('_', '-')}`", *([f"`{variable}`"] if variable in VARIABLES else [])]
        rows.append((f"`{name}`", values.get(name, "text"), text.rstrip("."), ", ".join(before)))
    yield _table(("setting", "values", "what for", "what goes before it"), rows)


def _words(module: Module, name: str) -> list[str]:
    """The texts of the ``Literal`` type ``name``."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return [str(each.value) for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
    raise LookupError(f"{module.name} has no {name}")


def _variables() -> Iterator[str]:
    yield "## Environment variables"
    yield _table(("variable", "what for"), [(f"`{name}`", text) for name, text in VARIABLES.items()])
    yield "What programs are told that ours start:"
    yield _table(("variable", "what it is"), [(f"`{name}`", text) for name, text in GIVEN.items()])


def _allow_list() -> Iterator[str]:
    yield "## The agent's allow-list"
    yield "TOML, in a private file (mode 0600) that `tpm-mtls agent run --allow FILE` names."
    yield from _docstring("tpm_mtls_agent.requests.access")


def _hardening() -> Iterator[str]:
    yield "## hardening.toml"
    yield "TOML, for `tpm-mtls provision --plan FILE` and `--apply FILE`."
    yield from _docstring("tpm_mtls_keygen.provision.settings")


def _latency_models() -> Iterator[str]:
    folder = ROOT / "relay" / "tpm_mtls_relay" / "models"
    yield "## Latency models"
    yield from _docstring("tpm_mtls_relay.observers.latency_file")
    rows = [
        (f"`{path.stem}`", re.findall(r'^description = "(.*)"', path.read_text(), re.MULTILINE)[0])
        for path in sorted(folder.glob("*.toml"))
    ]
    yield _table(("shipped model", "of"), rows)


def _folders() -> Iterator[str]:
    yield "## Files and folders"
    yield f"The identity folder is `{constant('tpm_mtls.identity', 'DEFAULT_FOLDER')}` (0750; `--state-dir`):"
    yield _table(("file", "mode", "what it is"), _rows(IDENTITY))
    yield """\
No other device can use a copy of it, unless its key is a software key. Without it the identity comes back from the TPM
(`first-boot`) or is enrolled anew; the agent's secrets are lost, so keep them at their source, too."""
    yield f"The agent's run folder is `{constant('tpm_mtls_agent.duty_options', 'RUN_FOLDER')}` (`--run-dir`):"
    yield _table(("file", "mode", "what it is"), _rows(RUN))
    yield f"Its socket is `{constant('tpm_mtls.secrets.protocol', 'DEFAULT_SOCKET')}` (`--socket`)."
    yield f"The CA's folder is `{constant('tpm_mtls_pki.authority', 'DEFAULT_FOLDER')}` (`--ca-dir`), to be backed up:"
    drawn = ast.get_docstring(load_module("tpm_mtls_pki.authority").tree) or ""
    files = re.findall(r"^(\S+\.\S+) +(\d{4}) +(.*)$", drawn, re.MULTILINE)
    yield _table(("file", "mode", "what it is"), [(f"`{name}`", mode, _inline(text)) for name, mode, text in files])
    database = constant("tpm_mtls_server.operators.cli_common", "DEFAULT_DATABASE")
    yield f"The backend's database is `{database}` (`--database`), to be backed up."
    yield "## In the TPM"
    yield _table(
        ("what", "where"),
        [(what, f"{where} {constant(module, name)}") for what, where, module, name in IN_THE_TPM],
    )


def _rows(files: Iterable[File]) -> list[tuple[str, str, str]]:
    return [(f"`{each.path()}`", each.mode, each.text) for each in files]


def _docstring(module: str) -> Iterator[str]:
    """A module's docstring without its first line; what is indented in it is TOML."""
    for is_code, text in passages((ast.get_docstring(load_module(module).tree) or "").partition("\n\n")[2]):
        yield f"```toml\n{text}\n```" if is_code else _inline(text)


def _inline(text: str) -> str:
    return text.replace("``", "`")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
