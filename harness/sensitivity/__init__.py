"""Sensitivity: how much loss an option costs."""
