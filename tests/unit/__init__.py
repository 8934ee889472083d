"""One module each, mirroring the package; no I/O."""
