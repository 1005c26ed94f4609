"""Early exits: classifiers inside a network, the threshold at which images leave, and the ONNX file."""
