"""Example inputs of a Hugging Face network, by the names of its forward and the sizes in its config.

Tokens lie below the vocabulary's size, masks are ones, images have the config's size and channels, spectrograms its
number of bands. The richest set of inputs that the network runs on is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compressor.checkpoint.hugging_face import parts_of
from compressor.checkpoint.inputs import Examples, examples_of, forward_names
from compressor.errors import CheckpointError
from compressor.graph.calling import calling_, own_class_
from compressor.graph.input_spec import InputSpec

TOKENS = 16  # of an example text: enough for a few windows, short enough to trace quickly
LENGTHS = (TOKENS, 64, 512)  # some networks take lengths of a window or of a table alone
IMAGES = (224, 64)  # pixels a side, where the config says nothing
SAMPLES = (16_000, 4_000)  # of sound: networks of small windows take the shorter
FRAMES = (100, 3_000)
SET_THEM = "set its inputs by name: `--input 'input_ids=1x16:int64<1000' --input 'attention_mask=1x16:int64'`"


def examples_for(module: nn.Module, specs: Sequence[InputSpec], *, complete: bool = False) -> Examples:
    """Return inputs that the network runs on, and let it take them by position; `specs` are the user's.

    Inputs that the user did not name are added, in the shapes of those that were, unless `specs` are `complete`.
    Refused: a network that runs on none of the usual inputs.
    """
    if specs and any(spec.name is None for spec in specs):
        return examples_of(module, specs, hint=SET_THEM)
    own_class_(module)
    _check_names(module, specs)
    if complete:
        calling_(module, inputs=[str(spec.name) for spec in specs])
        return examples_of(module, specs, hint=SET_THEM)
    first: CheckpointError | None = None
    for guess in _guesses(module, specs):
        calling_(module, inputs=[str(spec.name) for spec in guess])
        try:
            return examples_of(module, guess, hint=SET_THEM)
        except CheckpointError as error:
            first = first or error
            own_class_(module)
    raise first or CheckpointError(f"a `{type(module).__name__}` takes none of the usual inputs", hint=SET_THEM)


def _check_names(module: nn.Module, specs: Sequence[InputSpec]) -> None:
    """Refuse inputs that the forward does not take."""
    names = forward_names(module)
    for spec in specs:
        if spec.name not in names:
            listed = ", ".join(f"`{name}`" for name in names)
            raise CheckpointError(f"the network takes no input `{spec.name}`", hint=f"it takes {listed}")


def _guesses(module: nn.Module, specs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, ...]]:
    """Sets of inputs, the richest first, with the user's in their places."""
    own = {spec.name: spec for spec in specs}
    seen = []
    for scale in range(3):
        usual = _usual(module, scale, own)
        for names in _sets(module, usual):
            ordered = [name for name in forward_names(module) if name in own or name in names]
            guess = tuple(own.get(name) or usual[name] for name in ordered)
            if guess and guess not in seen:
                seen.append(guess)
                yield guess


def _sets(module: nn.Module, usual: Mapping[str, InputSpec]) -> Iterator[set[str]]:
    """The names of the inputs of each guess."""
    main = getattr(module, "main_input_name", "input_ids")
    required = {
        p.name
        for p in inspect.signature(type(module).forward).parameters.values()
        if p.default is p.empty and p.name in usual
    }
    beside = {name for name in usual if name.startswith("decoder_")} | ({"attention_mask"} & usual.keys())
    yield set(usual)
    yield required | ({main} & usual.keys()) | beside
    yield required | ({main} & usual.keys())
    for name in usual:
        yield required | {name}


def _usual(module: nn.Module, scale: int, own: Mapping[str | None, InputSpec]) -> dict[str, InputSpec]:
    """The usual inputs that the forward takes, in one of three sizes."""
    config: Any = module.config
    names = forward_names(module)
    text = _texts(config)
    inputs: dict[str, InputSpec] = {}
    length = _length(text, scale)
    if "input_ids" in own:
        length = own["input_ids"].shape[-1]
    if "input_ids" in names:
        inputs["input_ids"] = _tokens("input_ids", length, text)
        if "attention_mask" in names:
            shape = own["input_ids"].shape if "input_ids" in own else (1, length)
            inputs["attention_mask"] = InputSpec(name="attention_mask", shape=shape, dtype=torch.int64, low=1, below=2)
    if "bbox" in names:
        inputs["bbox"] = InputSpec(name="bbox", shape=(1, length, 4), dtype=torch.int64, low=1, below=2)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in names and (name == "pixel_values" or name == getattr(module, "main_input_name", "")):
            inputs[name] = InputSpec(name=name, shape=_image(config, scale))
    if "input_features" in names:
        shape = _spectrogram(config, scale)
        inputs["input_features"] = InputSpec(name="input_features", shape=shape)
        if "input_features_mask" in names:
            frames = shape[2] if shape[1] == _bands(config) else shape[1]
            inputs["input_features_mask"] = InputSpec(
                name="input_features_mask", shape=(1, frames), dtype=torch.int64, low=1, below=2
            )
    if "input_values" in names:
        inputs["input_values"] = InputSpec(name="input_values", shape=_sound(config, scale))
    for name in ("hidden_states", "inputs_embeds"):
        if name in names and "input_ids" not in names:
            inputs[name] = InputSpec(name=name, shape=(1, length, _number(text, "hidden_size", "d_model", default=64)))
    if "past_values" in names:
        inputs["past_values"] = InputSpec(name="past_values", shape=_series(config))
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = _tokens("decoder_input_ids", min(8, length), _decoders(config))
    return inputs


def _tokens(name: str, length: int, config: Any) -> InputSpec:
    """Random tokens of a vocabulary, without its first, which is often the padding."""
    below = _number(config, "vocab_size", default=0)
    if below < 2:
        return InputSpec(name=name, shape=(1, length), dtype=torch.int64)
    return InputSpec(name=name, shape=(1, length), dtype=torch.int64, low=1, below=below)


def _length(config: Any, scale: int) -> int:
    """A text's length: one of `LENGTHS`, within the positions that there are."""
    most = _number(config, "max_position_embeddings", "n_positions", "max_source_positions", default=1 << 30)
    return max(1, min(LENGTHS[scale], most))


def _image(config: Any, scale: int) -> tuple[int, ...]:
    """The shape of an image, or of a film: batch, perhaps frames, channels, height, width."""
    visual = next((c for c in parts_of(config) if _side(c) is not None), config)
    side = _side(visual) or (IMAGES[min(scale, 1)],) * 2
    channels = _number(visual, "num_channels", "in_channels", "in_chans", default=3)
    frames = _number(visual, "num_frames", "frames_per_clip", default=0)
    return (1, frames, channels, *side) if frames and scale < 2 else (1, channels, *side)


def _side(config: Any) -> tuple[int, int] | None:
    """Height and width of the images that a config is made for."""
    size = getattr(config, "image_size", getattr(config, "crop_size", None))
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
        return int(size[0]), int(size[1])
    return None


def _spectrogram(config: Any, scale: int) -> tuple[int, ...]:
    """The shape of a spectrogram: bands before frames where the encoder has a fixed number of frames, else behind."""
    bands, fixed = _bands(config), _number(_heard(config), "max_source_positions", default=0)
    if fixed and scale == 0:
        return 1, bands, 2 * fixed
    return (1, bands, FRAMES[1]) if scale == 1 else (1, FRAMES[0], bands)


def _heard(config: Any) -> Any:
    """The config of the part that reads sound."""
    return next((c for c in parts_of(config) if getattr(c, "num_mel_bins", None)), config)


def _bands(config: Any) -> int:
    """The number of bands of a spectrogram."""
    return _number(_heard(config), "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", default=80)


def _sound(config: Any, scale: int) -> tuple[int, ...]:
    """The shape of a sound: samples, or frames of bands where the config has both."""
    frames, bands = _number(config, "max_length", default=0), _number(config, "num_mel_bins", default=0)
    if frames and bands:
        return 1, frames, bands
    channels = _number(config, "audio_channels", default=0)
    return (1, channels, SAMPLES[min(scale, 1)]) if channels else (1, SAMPLES[min(scale, 1)])


def _series(config: Any) -> tuple[int, ...]:
    """The shape of a time series: batch, steps, channels."""
    steps, channels = _number(config, "context_length", default=64), _number(config, "num_input_channels", default=0)
    return (1, steps, channels) if channels else (1, steps)


def _texts(config: Any) -> Any:
    """The config of the part that reads tokens."""
    return next((c for c in parts_of(config) if _number(c, "vocab_size", default=0) > 1), config)


def _decoders(config: Any) -> Any:
    """The config of the part that reads the decoder's tokens."""
    own = getattr(config, "decoder", None)
    return own if _number(own, "vocab_size", default=0) > 1 else _texts(config)


def _number(config: Any, *names: str, default: int) -> int:
    """The first of these numbers in the config."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default
