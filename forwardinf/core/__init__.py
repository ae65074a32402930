"""Errors, settings, digests, files, progress, the machine: what every floor stands on."""
