"""paho-mqtt: python mqtt_publish.py broker.example 8883."""

import sys

from paho.mqtt import client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from tpm_mtls.identity import load_identity
from tpm_mtls.tls import client_context


def ended(_client: object, _data: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
    """Ends the program, with an error unless it is this side that has disconnected."""
    sys.exit(f"the broker has closed the connection: {reason}" if reason.is_failure else 0)


# not publish.single(): where the broker refuses the device, that tries again and again, each time with a signature
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.tls_set_context(client_context(load_identity()))
client.on_connect = lambda *_: client.publish("cellar/temperature", "21.5", qos=1)
client.on_publish = lambda *_: client.disconnect()
client.on_disconnect = ended
client.connect(sys.argv[1], int(sys.argv[2]))
client.loop_forever()
