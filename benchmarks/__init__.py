"""What is claimed, measured: each file writes raw results with their provenance, and the table made from them."""
