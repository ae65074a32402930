"""Models loaded, at each of their checkpoints, and given back bit for bit."""
