"""A trained network in and out: loading, its recipe, and the artifact that a run leaves."""
