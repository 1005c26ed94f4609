"""Criteria: one file each; the file name is the criterion's name."""
