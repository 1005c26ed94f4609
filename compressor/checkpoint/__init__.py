"""Load a trained network, its training recipe, and the artifact that a run writes."""
