"""What is right, and how fast, on one GPU."""
