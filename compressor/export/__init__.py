"""Verified ONNX: the file, its parity with the network, and its integers."""
