"""From scores to a table that answers a question, each with its free baseline beside it."""
