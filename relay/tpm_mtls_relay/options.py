"""The relay's command line, which `tpm_mtls.relay` writes into a TCTI string; read by hand to start fast."""

from __future__ import annotations

from tpm_mtls_relay.errors import OptionError

_WITH_VALUE = ("--tcti", "--policies", "--trace", "--pcap", "--metrics", "--latency-model", "--time-limit")
_REPEATED = ("--policies",)
_SWITCHES = ("--pass-through", "--check")


class Options:
    """What the relay was started with.

    Attributes:
        tcti: where the TPM is; required.
        policies: folders with policies of keys.
        pass_through: leave every command as it is: no shortcuts, no policies; for tracing other programs.
        trace: file (or named pipe) to which each command is reported, one JSON object a line.
        pcap: capture file.
        metrics: file for counters in Prometheus' text form.
        latency_model: file that says how slow the TPM is to be, or the name of a shipped one.
        time_limit: seconds in which the TPM must answer any command.
        check: open the files that the other options name, say on stderr what is wrong with them, and end.
    """

    def __init__(self) -> None:
        self.tcti = ""
        self.policies: list[str] = []
        self.pass_through = False
        self.trace = ""
        self.pcap = ""
        self.metrics = ""
        self.latency_model = ""
        self.time_limit = 300.0
        self.check = False


def parse_options(arguments: list[str]) -> Options:
    """The options that ``arguments`` are.

    Raises:
        OptionError: an unknown option, a missing value, or no ``--tcti``.
    """
    options = Options()
    remaining = list(arguments)
    while remaining:
        option = remaining.pop(0)
        if option in _SWITCHES:
            setattr(options, _attribute(option), True)
        elif option in _WITH_VALUE and remaining:
            value = remaining.pop(0)
            if option in _REPEATED:
                getattr(options, _attribute(option)).append(value)
            else:
                setattr(options, _attribute(option), value)
        else:
            raise OptionError(f"option {option} is unknown or lacks its value")
    if not options.tcti:
        raise OptionError("--tcti is missing")
    options.time_limit = _seconds(options.time_limit)
    return options


def _attribute(option: str) -> str:
    return option[2:].replace("-", "_")


def _seconds(value: str | float) -> float:
    try:
        seconds = float(value)
    except ValueError as error:
        raise OptionError(f"--time-limit is no number of seconds: {value}") from error
    if not 0 < seconds < 1e6:  # noqa: PLR2004 - 12 days; refuses nan and inf, too
        raise OptionError(f"--time-limit is no number of seconds: {value}")
    return seconds
