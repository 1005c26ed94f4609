"""Score channels, cost widths, and choose the channels to remove."""
