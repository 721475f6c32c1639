"""paho-mqtt: python mqtt_publish.py broker.example 8883."""

import sys

from paho.mqtt import publish

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context

context = client_context(load_identity())
publish.single("cellar/temperature", "21.5", qos=1, hostname=sys.argv[1], port=int(sys.argv[2]), tls=context)
