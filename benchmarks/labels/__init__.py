"""Wrong labels, and what is known by heart."""
