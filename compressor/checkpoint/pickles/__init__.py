"""Pickles, read without running what they name: networks of known layers, weights of unknown ones, structures."""
