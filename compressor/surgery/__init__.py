"""What is taken out (channels, single weights, rank), and the proof that it was right."""
