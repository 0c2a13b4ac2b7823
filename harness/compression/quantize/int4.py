"""Weights stored in four bits, which runtimes widen to float before they compute."""
