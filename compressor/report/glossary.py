"""What the report's words mean."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("dense model", "the network before pruning"),
    (
        "masked weights",
        "the dense model with single weights set to zero, as many as the small model lacks: it keeps its shapes",
    ),
    (
        "masked channels",
        "the dense model with the removed channels set to zero: it computes what the small model does "
        "before retraining, in the dense model's shapes",
    ),
    ("small model", "the network whose channels are gone: its layers are physically smaller"),
    ("channel group", "channels of several layers that must leave together, because sums or norms couple them"),
    ("latency", "milliseconds for one batch; the batch size is always stated"),
    ("median, p90, p99", "half, 90 % and 99 % of the calls were no slower than this"),
    (
        "speed-up",
        "the dense model's latency over the candidate's, both measured in turns on one machine; above 1 is faster",
    ),
    (
        "interval",
        "where the ratio would fall if the measurement were repeated; if it contains 1, no difference was found",
    ),
    (
        "dense again",
        "the null check: the dense model enters a second time, against itself, and its interval should contain 1",
    ),
    ("MACs", "multiply-accumulates for one sample, counted, never timed"),
    ("theoretical speed-up", "the ratio of MACs: what the clock would show if only arithmetic cost time"),
    ("throughput", "samples per second"),
    ("n. s.", "no significant difference: the interval contains 1"),
    ("pruning ratio", "the fraction of channels removed"),
    (
        "surgery proof",
        "the small model's outputs compared with the dense model's in which exactly the removed channels are silenced",
    ),
    ("parity", "the ONNX file's outputs compared with the small model's in PyTorch"),
    ("int8", "the network's ONNX file with weights and activations in 8-bit integers, against the float file"),
    ("tuning split", "images held out of training on which choices are made; the test split is read once, at the end"),
)
