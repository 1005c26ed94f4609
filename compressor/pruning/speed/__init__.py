"""Pruning to a measured speed."""
