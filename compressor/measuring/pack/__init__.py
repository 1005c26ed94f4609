"""A folder that measures on a machine without torch."""
