"""Accuracy back before any retraining, without labels."""
