"""Lottery tickets, supermasks and what their studies need."""
