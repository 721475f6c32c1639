"""The device agent: secrets sealed to this device and this boot, over a Unix socket."""
