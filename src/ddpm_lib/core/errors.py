"""The errors that users catch by name; each room raises them, none but this defines them."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot work: the message names the option, what was got and what
    fits.
    """


class DivergedError(RuntimeError):
    """Training whose loss or gradient is no longer finite."""


class OutOfMemoryError(RuntimeError):
    """The device has no memory for one forward and backward pass; the message has the numbers."""


class LostProcessError(RuntimeError):
    """Another process of the run died or fell silent; the same command continues the run."""

    exit_code = 75
    """Of a process that ends for it: "try again", so that scripts of clusters start it anew."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, incomplete, damaged or does not fit."""


class HubError(OSError):
    """A hub that cannot be reached, or says no: the message names the repository and the remedy."""
