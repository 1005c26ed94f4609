"""Latency tables: the time of each operator at different widths, measured on one runtime."""
