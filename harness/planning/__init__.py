"""Strategies from requirements: what a network would become, predicted before anything is built."""
