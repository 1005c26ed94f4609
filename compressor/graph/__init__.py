"""The network as `torch.export` writes it, and how it is copied, lent and run step by step."""
