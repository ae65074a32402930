"""Whether the mirrored influence hypothesis holds."""
