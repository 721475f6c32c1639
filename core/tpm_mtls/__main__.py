"""``python -m tpm_mtls`` is ``tpm-mtls``."""

import sys

from tpm_mtls.cli import run

sys.exit(run())
