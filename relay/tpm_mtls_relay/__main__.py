"""``python -I -S …/tpm_mtls_relay/__main__.py --tcti TCTI [OPTION…]``: see `tpm_mtls_relay.options`."""

import os
import sys

# Whoever asks this program for the TPM has the provider in its OpenSSL configuration. A helper of ours that read it too
# would load the provider, which would start this program again, without end.
os.environ.pop("OPENSSL_CONF", None)

if __package__ in {None, ""}:  # run by its path, with no package installed: -I -S
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is slow to import

from tpm_mtls_relay.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
