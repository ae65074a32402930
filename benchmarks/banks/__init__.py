"""Banks of trainings on random halves: what exact retraining says of each query."""
