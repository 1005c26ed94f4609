"""Latency tables: what each operator takes at what widths, measured on one runtime."""
