"""The studies: their parts, their runner, and the published experiments that they repeat."""
