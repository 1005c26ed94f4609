"""Training on one domain while another is drawn to it."""
