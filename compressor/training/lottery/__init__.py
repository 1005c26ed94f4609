"""Lottery tickets, supermasks, and the training that their studies need."""
