"""From a trained checkpoint to a smaller network that is really faster."""
