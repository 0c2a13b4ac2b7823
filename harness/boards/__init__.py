"""Boards: where they are, how they are reached, what they measure."""
