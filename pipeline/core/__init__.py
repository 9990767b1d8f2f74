"""The decisions: plain functions over plain values.

Imports the standard library and numpy only, does no I/O and never logs.
"""
