"""Remove channels, single weights or rank from a network, and prove that the result is right."""
