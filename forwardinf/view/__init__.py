"""What people touch: command line, terminal tables, HTML report. Computes nothing."""
