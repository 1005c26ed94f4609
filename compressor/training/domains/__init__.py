"""Train on a labelled domain and adapt to an unlabelled one."""
