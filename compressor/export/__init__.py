"""Verified ONNX files: export, comparison with the network, and quantisation to int8."""
