"""What was measured of an artifact, as frozen values, each written and read by its own class."""
