"""What is measured, and how: one folder for each question, one command, ``python -m benchmarks NAME``."""
