"""How the TPM is, checked each hour and when somebody asks; and what follows: maintenance mode, on and off again.

    report = check_health(tcti, folder, authorizations=Authorizations(srk=…, key=…))
    publish(run_dir, report)

Nothing of it writes the TPM's NV memory, which wears out.
"""

from tpm_mtls_agent.health.check import Authorizations, check_health
from tpm_mtls_agent.health.classify import change_of, status_line
from tpm_mtls_agent.health.publication import HEALTH, MAINTENANCE, METRICS, load_health, publish

__all__ = [
    "HEALTH",
    "MAINTENANCE",
    "METRICS",
    "Authorizations",
    "change_of",
    "check_health",
    "load_health",
    "publish",
    "status_line",
]
