"""RESULTS: what was found out about an artifact, as frozen values, each written and read by its own class."""
