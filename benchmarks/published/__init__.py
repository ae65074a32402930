"""What the published settings do differently."""
