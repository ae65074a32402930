"""How much memory reading takes."""
