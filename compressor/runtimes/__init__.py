"""Runtimes: one file each; the file name is the runtime's name."""
