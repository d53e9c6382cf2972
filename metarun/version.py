"""The version, apart from the package itself, which may load an API."""

__version__ = "0.1.0"
