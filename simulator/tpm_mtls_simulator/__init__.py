"""A simulated TPM: swtpm with its own state folder and an endorsement-key certificate of swtpm's local CA.

For development, tests and the demo. Nothing starts it by itself: a program without a usable TPM says so.
"""

from tpm_mtls_simulator.simulator import Simulator, SimulatorStatus

__all__ = ["Simulator", "SimulatorStatus"]
