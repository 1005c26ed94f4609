"""Read images and labels from all common formats, as disjoint splits."""
