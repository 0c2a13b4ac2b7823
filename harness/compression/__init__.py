"""Compression: turn a network and a strategy into a variant."""
