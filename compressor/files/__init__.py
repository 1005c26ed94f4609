"""Files and folders of every kind: written whole or not at all, read strictly, with safe names."""
