"""Build a Hugging Face network from the values of its `config.json`, with transformers: `transformers:bert.BertModel`.

A config comes with a file, so it must not run code, read a file or fetch anything. Only its numbers, short texts and
lists and dicts of these are used; texts hold no path and no address, and values with which transformers would load
weights, code, kernels or quantised layers are left out or refused. transformers is offline meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from compressor.errors import ArchitectureError, CheckpointError, unknown
from compressor.files.names import printable

REGISTRY = "transformers"
TEXT = re.compile(r"[\w .,+@-]{0,120}", re.ASCII)
KEY = re.compile(r"(?!_)[A-Za-z]\w{0,99}", re.ASCII)
REMOTE = ("auto_map", "custom_pipelines", "trust_remote_code")  # code beside the weights, or on the hub
UNREADABLE = ("quantization_config", "compression_config", "fusion_config", "distributed_config", "gguf_file")
# What the tool sets itself, what only describes the folder, and what would load or compile something.
LEFT_OUT = re.compile(
    r"architectures|model_type|transformers_version|torch_?dtype|dtype|label2id|.*tokenizer_class|processor_class|"
    r"return_dict|use_cache|output_(attentions|hidden_states)|.*(attn|experts)_implementation.*|torchscript|"
    r"(use_)?pretrained.*|.*_pretrained_.*|.*(checkpoint|jit|scriptable|exportable).*|.*cfg.*|base_model_.*_plan|"
    r"use_kernels|kernel_config|tp_.*|device_map|.*sub_?configs(_.*)?|attribute_map|task_specific_params"
)
PLACES = re.compile(r".*(path|file|dir|url|hub|repo|weights|code|name_or_path|index_name).*")  # as texts
DTYPE = re.compile(r"b?float(16|32|64)|u?int(8|16|32|64)|bool")
OF_TIMM = ("model_args", "backbone_kwargs")  # what timm's constructors take: numbers alone
NO_NETWORK = re.compile(r"features?_|out_indices|progress")  # what would trace one, or print
OWN_CODE = (
    "compress runs no code that a folder brings: build it yourself, `FOLDER/model.safetensors --arch net.py:make`, or "
    "name the class that transformers has for it"
)


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `config.json` says about the network, as plain values that may be written down.

    Refused: a config that asks for code of its own, or for layers that are no plain ones.
    """
    values = dict(_clean(config))
    labels = config.get("id2label")
    if isinstance(labels, Mapping):
        values["num_labels"] = len(labels)
    return values


def _clean(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a config, at every depth, without what only names places."""
    for key, value in config.items():
        if key in REMOTE and value:
            raise ArchitectureError(f"the config asks for code of its own (`{key}`)", hint=OWN_CODE)
        if key in UNREADABLE and value:
            raise ArchitectureError(
                f"the config asks for layers of another kind (`{key}`)",
                hint="load it with transformers, save the plain network, and use that folder",
            )
        if not KEY.fullmatch(key) or LEFT_OUT.fullmatch(key) or key in (*REMOTE, *UNREADABLE, "id2label"):
            continue
        if isinstance(value, str) and (PLACES.fullmatch(key) or not TEXT.fullmatch(value)):
            continue
        if "dtype" in key and not (value is None or DTYPE.fullmatch(str(value))):  # an attribute of torch by its name
            continue
        if isinstance(value, Mapping) and key in OF_TIMM:
            yield key, {k: v for k, v in _clean(value) if isinstance(v, (bool, int, float)) and not NO_NETWORK.match(k)}
        elif isinstance(value, Mapping):
            kind = value.get("model_type")
            named = {"model_type": kind} if isinstance(kind, str) and _is_known(kind) else {}
            yield key, named | dict(_clean(value))
        elif _is_plain(value):
            yield key, value


def _is_known(model_type: str) -> bool:
    """True if transformers has the model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _is_plain(value: object) -> bool:
    """True for a number, a short text, `None`, or lists of these and of dicts of these."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 10_000 and all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return value == dict(_clean(value)) and len(value) <= 10_000
    if isinstance(value, str):
        return TEXT.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def check_values(ref: str, arguments: Mapping[str, object]) -> None:
    """Refuse a config's values from a file that `values_of` would not have written."""
    values = {key: value for key, value in arguments.items() if key != "num_labels"}
    try:
        same = values_of(values) == values and isinstance(arguments.get("num_labels", 1), int)
    except ImportError as error:
        raise _absent() from error
    if not same:
        kept = values_of(values)
        odd = next((key for key in values if kept.get(key, ...) != values[key]), "num_labels")
        raise ArchitectureError(
            f"the file asks for `{ref}` with `{printable(odd)}={printable(repr(values.get(odd)))}`, which a file may "
            "not",
            hint="prune again, from the folder that holds the config",
        )


def reference(config: Mapping[str, Any]) -> str:
    """Return the name of the network that a config describes, as `transformers:bert.BertForMaskedLM`.

    Refused: a config without a class that transformers has.
    """
    model_type, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or not model_type:
        raise ArchitectureError(
            "the config has no `model_type`", hint="a Hugging Face network's config.json names one; or use `--arch`"
        )
    first = classes[0] if isinstance(classes, list) and classes else None
    if first is None:
        first = _default_class(model_type)
    if not isinstance(first, str) or not first.isidentifier():
        raise ArchitectureError(
            f"the config names no class for `{printable(model_type)}`", hint='add `"architectures": ["BertModel"]`'
        )
    return f"{REGISTRY}:{model_type}.{first}"


def _default_class(model_type: str) -> object:
    """The class of the network without a head."""
    with imported():
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    first = MODEL_MAPPING_NAMES.get(model_type)
    return first[0] if isinstance(first, (tuple, list)) else first


def _absent() -> ArchitectureError:
    return ArchitectureError("transformers is not installed", hint="`pip install compress[transformers]`")


@contextlib.contextmanager
def imported() -> Iterator[None]:
    """While active, a missing transformers is an error with its way out, and nothing is fetched or reported."""
    with _offline():
        try:
            import transformers  # noqa: F401  # the first import, while offline
        except ImportError as error:
            raise _absent() from error
        yield


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """While active, transformers and the hub's library fetch nothing, and keep quiet."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"), TRANSFORMERS_VERBOSITY="error")
    constants: Any = None
    with contextlib.suppress(ImportError):
        constants = importlib.import_module("huggingface_hub.constants")
    was = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = was
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def factory(name: str) -> Callable[..., nn.Module]:
    """Return what builds the network `MODEL_TYPE.Class` from the values of a config."""

    def make(**values: object) -> nn.Module:
        with imported(), _progress_off():
            kind = class_named(name)
            module: nn.Module = kind(config_of(name, values))
            return module

    return make


def class_named(name: str) -> Any:
    """The class `MODEL_TYPE.Class` of transformers. Refused: a name that transformers does not have."""
    model_type, _, leaf = name.rpartition(".")
    with imported():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    if model_type not in CONFIG_MAPPING:
        raise ArchitectureError(
            f"transformers has no model type `{printable(model_type)}`",
            hint=unknown("model types", model_type, list(CONFIG_MAPPING)),
        )
    kinds = _networks_beside(CONFIG_MAPPING[model_type])
    if leaf not in kinds:
        raise ArchitectureError(
            f"transformers has no `{printable(leaf)}` for `{model_type}`", hint=unknown("classes", leaf, list(kinds))
        )
    return kinds[leaf]


def classes_of(model_type: str) -> list[str]:
    """Return the names of the networks that take the config of a model type."""
    with imported():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    config = CONFIG_MAPPING[model_type]
    own = {name: kind for name, kind in _networks_beside(config).items() if kind.config_class is config}
    return [name for name in own if not name.endswith("PreTrainedModel")]


def _networks_beside(config: Any) -> dict[str, Any]:
    """The networks that stand in the package of a config, by name."""
    package = config.__module__.rpartition(".")[0]
    with imported():
        from transformers import PreTrainedModel
    try:
        return {
            one.__name__: one
            for module in _modeling_modules(package)
            for one in vars(importlib.import_module(module)).values()
            if isinstance(one, type) and issubclass(one, PreTrainedModel) and one.__module__ == module
        }
    except ImportError as error:
        raise ArchitectureError(f"transformers cannot import its `{package}`: {error}") from error


def _modeling_modules(package: str) -> list[str]:
    """The modules of a package of transformers that define networks."""
    import pkgutil

    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [f"{package}.{one.name}" for one in modules if one.name.startswith("modeling_")]


def config_of(name: str, values: Mapping[str, object]) -> Any:
    """Return the config for these values, with what the tool sets: no cache, all outputs in a dict."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = name.rpartition(".")[0]
    kind = _config_class(class_named(name), CONFIG_MAPPING[model_type])
    config = kind(**{key: value for key, value in values.items() if not _is_method(kind, key)})
    without_cache_(config)
    return config


def is_of_transformers(module: nn.Module) -> bool:
    """Return true for a network whose config says what it reads, as those of transformers do."""
    named = isinstance(getattr(module, "main_input_name", None), str)
    return named and hasattr(getattr(module, "config", None), "to_dict")


def parts_of(config: Any) -> list[Any]:
    """Return the config and the configs of its parts."""
    names = [*getattr(config, "sub_configs", {}), "backbone_config", "encoder", "decoder", "vision_config"]
    parts = [getattr(config, name, None) for name in dict.fromkeys(names)]
    return [config, *(part for part in parts if hasattr(part, "to_dict"))]


def without_cache_(config: Any) -> None:
    """Let networks of this config keep no cache, return their outputs by name, and run experts by plain products.

    The library's own way to run experts is an operator of its own, which no exporter knows.
    """
    config._experts_implementation = "batched_mm"
    for part in parts_of(config):
        if "use_cache" in vars(part):
            part.use_cache = False
        part.return_dict = True


def _is_method(kind: Any, key: str) -> bool:
    """True if a config's class has a method, or a property that cannot be set, of this name."""
    own = inspect.getattr_static(kind, key, None)
    return callable(own) or isinstance(own, (classmethod, staticmethod)) or getattr(own, "fset", ...) is None


def _config_class(kind: Any, listed: Any) -> Any:
    """The class of the config that the network takes: the model type's, or that of one of its parts."""
    own = getattr(kind, "config_class", None)
    return own if isinstance(own, type) else listed


@contextlib.contextmanager
def _progress_off() -> Iterator[None]:
    """While active, transformers prints no progress bars."""
    from transformers.utils import logging as untyped

    logging: Any = untyped

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def filled(name: str, values: Mapping[str, object], state: Mapping[str, Tensor], *, where: str) -> nn.Module:
    """Return the network with the weights of a folder, under the names that transformers maps to its own.

    Refused: weights that are missing or of another shape.
    """
    with imported(), _progress_off():
        kind = class_named(name)
        try:
            module, loaded = kind.from_pretrained(
                None,
                config=config_of(name, values),
                state_dict=dict(state),
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ImportError, OSError) as error:
            raise CheckpointError(
                f"transformers cannot build `{name}` from {where}: {type(error).__name__}: {error}",
                hint="check config.json against the weights beside it",
            ) from error
    _check_loaded(loaded, name=name, where=where)
    built: nn.Module = module
    return built


def _check_loaded(loaded: Mapping[str, Any], *, name: str, where: str) -> None:
    """Refuse weights that transformers would have drawn at random."""
    for kind, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = sorted(one if isinstance(one, str) else one[0] for one in loaded.get(kind) or ())
        if names:
            raise CheckpointError(
                f"the weights in {where} are not those of `{name}`: {len(names)} {what}: {', '.join(names[:4])}"
                f"{' …' * (len(names) > 4)}",
                hint="`architectures` in config.json names the class that the weights were saved from",
            )
