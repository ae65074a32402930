"""What each engine costs, beside one plain forward pass and beside rivals."""
