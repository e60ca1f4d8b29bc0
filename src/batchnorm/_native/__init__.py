"""The native kernels as a shared library: found, loaded, checked. No framework is in here."""
