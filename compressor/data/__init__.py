"""Images and labels from every form that people have, in disjoint splits."""
