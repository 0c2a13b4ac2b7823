"""The agent that boardfit runs on a board: Python 3.6, standard library, imports only itself."""
