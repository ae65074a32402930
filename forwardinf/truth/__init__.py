"""What retraining says: banks, LDS, agreement, leave-one-out, the hypothesis itself."""
