"""How faithful each way of scoring is, against retraining."""
