"""What responses to shared perturbations are worth."""
