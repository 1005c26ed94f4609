"""Files and folders of every kind: whole or not at all, strictly read, with names that are safe."""
