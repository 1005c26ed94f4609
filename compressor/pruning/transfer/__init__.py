"""Pruning while a network is drawn to another domain."""
