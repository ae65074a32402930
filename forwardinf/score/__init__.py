"""Numbers out of readings: sign and unit, the best of each query, the store."""
