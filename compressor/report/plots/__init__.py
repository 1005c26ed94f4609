"""Plots of studies, frontiers and sensitivities, by matplotlib in the look of the page."""
