"""The query moves the model: which parameters, which direction, how far, and back bit for bit."""
