"""Code that the user named by `--arch`: which is trusted, and how it is imported."""
