"""Folders that hold a model as the Hugging Face hub does, and the hub itself."""

MAX_SHARD_SIZE = "5GB"
"""Size of a file of weights, as the hub's tools have it; what is larger is cut into several."""
MOST_LEVELS = 10**6
"""More noise levels than any process has; tables of 10¹⁰ would take all memory before anything is
compared.
"""

PARTNER = "partner"
"""The name, in a pretrained folder, of the weights by which its sampling default guides; they are
loaded for that alone.
"""
