"""Models loaded, fed with batches, and given back bit for bit."""
