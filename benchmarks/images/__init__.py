"""Which images made a generated image."""
