"""Words and formulas: settings, errors, fingerprints, data, per-example losses, noise keyed by example."""
