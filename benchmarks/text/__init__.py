"""Which texts taught a decoder a fact."""
