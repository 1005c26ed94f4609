"""Prune a network while it adapts to another domain."""
