"""The network as a `torch.export` graph: how it is exported, copied, used for a while and run operator by operator."""
