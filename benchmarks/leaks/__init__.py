"""Copies of training examples among the tests."""
