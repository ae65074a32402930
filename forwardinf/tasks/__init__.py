"""What a training example's loss is, and what a query is asked."""
