"""nginx as a peer that nobody of this project wrote: it requires a client certificate and says what it saw."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm_mtls.key_reference import KeyFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tpm_mtls.identity import Identity

_TIMEOUT = 20.0  # seconds until it listens

_CONFIGURATION = """{environment}
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log off; default_type text/plain;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; server_name localhost; keepalive_timeout 60;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols {protocols};
    ssl_client_certificate {trust}; ssl_verify_client {verify}; ssl_verify_depth 3; {more}
    location / {{
      return 200 "$ssl_client_verify|$ssl_client_s_dn|$ssl_client_serial|$ssl_protocol|$ssl_session_reused|$connection";
    }}
  }}
}}
"""


@contextmanager
def running_nginx(
    folder: Path,
    identity: Identity,
    *,
    protocols: str = "TLSv1.2 TLSv1.3",
    verify: str = "on",
    more: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The URL of an nginx with ``identity`` that verifies clients against its trust, while the block lasts.

    ``variables`` are those of ``openssl-env``, for a TPM key.
    """
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "nginx is not installed (Debian package nginx-light)"
    assert isinstance(identity.key, KeyFile)
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            environment="".join(f"env {name};" for name in variables or {}),
            folder=folder,
            port=port,
            certificate=identity.certificate,
            key=identity.key.path,
            trust=identity.trust,
            protocols=protocols,
            verify=verify,
            more=more,
        )
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    environment |= variables or {}
    command = [program, "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(process, port)
            yield f"https://localhost:{port}"
        finally:
            process.terminate()
            process.wait(_TIMEOUT)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        assert process.poll() is None, "nginx ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError("nginx does not listen")
