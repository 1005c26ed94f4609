"""The one training loop, and every published way to train what is left."""
