"""Early exits: classifiers on the way, when an image leaves, and their ONNX file."""
