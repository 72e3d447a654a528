"""Ranvier: a Matrix homeserver made of workers."""

__version__ = "0.1.0"
