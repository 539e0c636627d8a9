"""The retrieval service."""

from importlib.metadata import version

__version__ = version("eoseek")
