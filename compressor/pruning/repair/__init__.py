"""Repair a small network before any retraining, without labels."""
