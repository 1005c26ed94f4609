"""Prune a network to a measured speed."""
