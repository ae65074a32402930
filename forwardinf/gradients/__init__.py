"""Per-example gradients without storing them: a recorded forward, the uses of layers, products, sums."""
