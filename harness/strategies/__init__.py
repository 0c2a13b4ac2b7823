"""Strategies: options, predictions and the strategies made of them."""
