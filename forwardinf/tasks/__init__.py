"""What a training example's loss is, what a query is asked; and batches brought to the model for it."""
