"""Nightshift: one GPU, two shifts."""

__version__ = "0.1.0"
