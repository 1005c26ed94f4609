"""Attacks on everything that comes in: what it must not do, and what it must end in."""
