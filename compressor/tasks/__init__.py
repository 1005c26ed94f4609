"""What a network is trained for: its loss, its score, and how it follows the dense network."""
