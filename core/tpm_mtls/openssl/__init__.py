"""Python's own OpenSSL and its tpm2 provider, through ctypes; nothing else in the project uses ctypes.

``library`` finds the library and declares its functions, ``provider`` loads the tpm2 provider into a library context
of its own, ``keys`` loads private keys and makes test signatures, ``certificates`` reads certificate chains,
``contexts`` reaches into `ssl.SSLContext`. `tpm_mtls.tls` is what programs use.
"""
