"""Find a model's configuration: built in, in a local config.json, or on the Hub."""

import difflib
import json
import tomllib
import warnings
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError

# text parts that have no causal LM in transformers -> the model with the same layers
SAME_LAYERS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def built_in() -> dict[str, dict]:
    """Dimensions of the built-in models, `{name: {field: value}}`."""
    text = (resources.files(__package__) / "configs.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def find(model: str | Path) -> "PretrainedConfig":
    """The transformers configuration of `model`: a built-in name, a path, or a hub id.

    A path is a config.json or its folder. LabError if there is no configuration.
    """
    name = str(model)
    if name.lower() in built_in():
        return _configure(built_in()[name.lower()], name)
    path = Path(name)
    try:
        if path.is_dir():
            path = path / "config.json"
        if path.is_file():
            return _configure(_read(path), name)
    except OSError as error:  # a name too long, no permission
        raise LabError(str(error)) from None
    if path.name == "config.json" or path.suffix == ".json":
        raise LabError(f"no file {path}")
    return _configure(_from_hub(name), name)


def _read(path):
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise LabError(f"{path} has no model_type: it is not a transformers configuration")
    return fields


def _from_hub(name):
    from labkit.download import hub_answers

    near = difflib.get_close_matches(name.lower().split("/")[-1], built_in(), n=3, cutoff=0.5)
    offer = f"similar: {', '.join(near)}" if near else f"built in: {', '.join(built_in())}"
    if "/" not in name:
        how = "or give a config.json, its folder, or a hub id such as owner/name"
        raise LabError(f"no model {name!r}; {offer}; {how}")
    if not hub_answers():
        why = f"no file {name!r} here, and the Hugging Face hub does not answer"
        raise LabError(f"{why}; {offer}; or download its config.json and give the path")
    import transformers

    try:
        return transformers.PretrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        raise LabError(f"{name}: {' '.join(str(error).split())[:200]}") from None


def _configure(fields, name):
    """Make the configuration object; LabError if transformers has no causal LM for it.

    For a multimodal model, it describes the text part, and `part_of` is the type of the whole
    model. If transformers lacks the model's own type, `taken_for` is the type used instead.
    """
    import transformers

    fields = {key: x for key, x in fields.items() if key not in ("auto_map", "quantization_config")}
    published = fields.pop("model_type", None)
    kind = _known(published, fields.get("architectures") or (), name)
    if fields.get("sliding_window") == 0:  # TOML has no null
        fields["sliding_window"] = None
    config = _made(kind, fields, name)
    made_for = " ".join(fields.get("architectures") or ["ForCausalLM"])
    causal = "CausalLM" in made_for or "LMHead" in made_for
    config.taken_for = kind if kind != published else ""
    if isinstance(getattr(config, "text_config", None), transformers.PretrainedConfig):
        config, causal = _text_part(config, name), True
        config.part_of = published
    if not _is_causal(type(config)) or not causal:
        why = "is not a causal language model: choose a model that generates text"
        raise LabError(f"{name} ({published}, {made_for}) {why}")
    return config


def _is_causal(kind):
    """Whether transformers has a causal LM for this configuration class.

    transformers 5.24 has a Mistral 4 causal LM but does not map it, so it is registered here.
    """
    import transformers

    own = getattr(transformers, f"{kind.__name__.removesuffix('Config')}ForCausalLM", None)
    if own and kind not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        transformers.AutoModelForCausalLM.register(kind, own, exist_ok=True)
    return kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING


def _made(kind, fields, name):
    """Make a transformers configuration of this type; a one-line LabError if that fails."""
    import transformers

    try:
        with warnings.catch_warnings():  # about deprecated names in published files
            warnings.simplefilter("ignore")
            return transformers.AutoConfig.for_model(kind, **fields)
    except Exception as error:  # dimensions that don't divide, fields of another kind
        raise LabError(f"{name}: {' '.join(str(error).split())[:200]}") from None


def _known(kind, architectures, name):
    """The model type, or the architecture's model type if the two disagree.

    Kimi-K2 has its own type and code with DeepSeek-V3's architecture. MiniMax-M2 was published with
    the type of MiniMax-01, whose layers differ.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    fitting = [known for known, architecture in causal.items() if architecture in architectures]
    if kind in transformers.CONFIG_MAPPING and (kind in fitting or not fitting):
        return kind
    if fitting:
        return fitting[0]
    version = transformers.__version__
    raise LabError(
        f"{name}: transformers {version} has no model type {kind!r}; a newer version may. "
        "A model's own code (auto_map) is not run here: give the config.json of a model with "
        "the same layers, with this model's dimensions"
    )


def _text_part(config, name):
    """The text part of a multimodal model, as a causal LM."""
    text = config.get_text_config()
    if text.model_type not in SAME_LAYERS:
        text.taken_for = ""
        return text
    kind = SAME_LAYERS[text.model_type]
    fields = {k: x for k, x in text.to_dict().items() if k not in ("model_type", "rope_parameters")}
    text = _made(kind, fields, name)
    text.taken_for = kind
    return text
