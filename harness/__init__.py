"""The host controller of boardfit."""
