"""What channels are worth, what widths cost, and which channels leave."""
