"""Measure accuracy and latency, with intervals: runtimes, latency tables, and folders that measure elsewhere."""
