"""The version, once: packaging reads it, the extension is built with it and compared to it."""

__version__ = "0.1.0"
