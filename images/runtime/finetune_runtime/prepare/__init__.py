"""The prepare step."""

from .step import run

__all__ = ["run"]
