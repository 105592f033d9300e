"""Loading and saving: LLaViT and LLaVA checkpoints, adapters, and the copy of text QKV where visual QKV are missing."""

import logging
import os
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.models.llava.modeling_llava import LlavaPreTrainedModel

from llavit.model.adapters import (
    base_of,
    find_adapters,
    has_adapters,
    load_adapters,
    save_adapters,
)
from llavit.model.checkpoint import VISUAL_KEY, llava_key_mapping
from llavit.model.compat import LOCATION
from llavit.model.configuration import LlavitConfig
from llavit.model.quantize import register_int8
from llavit.model.routing import routed_linears

logger = logging.getLogger(__name__)

_SWITCHES = ("visual_qkv", "bidirectional_visual_attention")
_OF_WEIGHTS = ("dtype", "torch_dtype", "quantization_config")  # a configuration has them too

register_int8()


class LlavitPreTrainedModel(LlavaPreTrainedModel):
    """Loading and saving, shared by the model with and without a head."""

    config_class = LlavitConfig
    config: LlavitConfig
    _uninitialised_visual: frozenset[str] = frozenset()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a LLaViT checkpoint, or a LLaVA one (LLaVA-1.5 format) unchanged.

        Visual QKV weights that the checkpoint lacks are copied from its text weights, and the log says which.
        Those that it has are never overwritten. A folder with LoRA adapters (`llavit.model.adapters`) is loaded
        with the base that it names; the arguments then go to the base.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            *args: as in transformers.
            **kwargs: as in transformers: the name of a field of the configuration changes it, `text_config={...}`
                fields of the LLM's. Of a `config` that is given, `visual_qkv` and `bidirectional_visual_attention`
                alone can be changed.

        Returns:
            the model; with `output_loading_info=True`, the model and a dict of missing and unexpected keys.

        Raises:
            FileNotFoundError: the base of a folder with adapters is not where it was; names both.
            ValueError: adapters and base do not fit; another kind of model; or weights are missing, which would start
                at random (not with `output_loading_info=True`: then it is for the caller to look).

        Example:
            ```python
            model = LlavitForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
            ```
        """
        config = kwargs.pop("config", None)
        location = {key: kwargs[key] for key in LOCATION if key in kwargs}
        if not isinstance(config, LlavitConfig):
            source = config or pretrained_model_name_or_path
            config = LlavitConfig.from_pretrained(source, **location)
            changed = [key for key in kwargs if key not in (*LOCATION, *_OF_WEIGHTS) and hasattr(config, key)]
            if changed:
                changes = {key: kwargs.pop(key) for key in changed}
                config = LlavitConfig.from_pretrained(source, **location, **changes)
        for switch in _SWITCHES:
            if switch in kwargs:
                setattr(config, switch, kwargs.pop(switch))
        adapted = find_adapters(pretrained_model_name_or_path, **location)
        if adapted is not None:
            return cls._load_adapted(adapted, *args, config=config, **kwargs)
        kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **llava_key_mapping(config)}
        wants_info = kwargs.pop("output_loading_info", False)
        model: Any
        info: Any
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
        )
        model._weight_conversions = []  # saved under its own names, whatever it was loaded from
        model._copy_uninitialised_visual()
        if model.can_generate() and not model.generation_config.suppress_tokens:
            model.generation_config.suppress_tokens = [config.image_token_id]  # never generated
        if wants_info:
            return model, info
        _require_all(info, pretrained_model_name_or_path)
        return model

    @classmethod
    def _load_adapted(cls, folder: Path, *args: Any, **kwargs: Any) -> Any:
        """Load the base of a folder with adapters, then the adapters."""
        base = base_of(folder)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = cls.from_pretrained(base, *args, output_loading_info=True, **kwargs)
        except OSError as error:
            raise OSError(f"{folder} holds adapters for {base}, which does not load: {error}") from error
        load_adapters(model, folder, base=os.path.abspath(base) if os.path.isdir(base) else base)
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        if wants_info:
            return model, info
        _require_all(info, base)
        return model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save a model; one with adapters as adapters, trained parts and the name of its base.

        Args:
            save_directory: made if need be.
            *args: as in transformers.
            **kwargs: as in transformers. With adapters `is_main_process` and `state_dict` count, sharding does not.

        Raises:
            ValueError: the folder holds a whole model, which adapters would hide.
        """
        if not has_adapters(self):
            super().save_pretrained(save_directory, *args, **kwargs)
            _let_others_read(Path(save_directory))
            return
        if not kwargs.get("is_main_process", True):
            return
        folder = Path(save_directory)
        if folder.is_dir() and any(folder.glob("model*.safetensors*")):
            raise ValueError(f"{folder} holds a whole model; save the adapters somewhere else")
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        save_adapters(self, folder, kwargs.get("state_dict"))
        self.config.save_pretrained(folder)
        _let_others_read(folder)
        if self.can_generate():
            self.generation_config.save_pretrained(folder)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        missing = {key for key in loading_info.missing_keys if VISUAL_KEY.search(key)}
        self._uninitialised_visual = frozenset(missing)
        loading_info.missing_keys -= missing
        if not self.config.visual_qkv:
            left_out = {key for key in loading_info.unexpected_keys if VISUAL_KEY.search(key)}
            loading_info.unexpected_keys -= left_out
            if left_out:
                logger.warning(f"visual_qkv is off: {len(left_out)} visual QKV weights are left out.")

    def _copy_uninitialised_visual(self) -> None:
        """Copy text QKV into the visual QKV that loading left without weights, and say so."""
        if not self._uninitialised_visual:
            return
        projections = routed_linears(self)
        names = sorted({VISUAL_KEY.sub("", key) for key in self._uninitialised_visual})
        for name in names:
            projections[name].copy_text_to_visual()
        logger.warning(
            f"Visual QKV initialised as copies of the text QKV in {len(names)} of {len(projections)} projections "
            f"(the checkpoint has none): {names[0]} to {names[-1]}."
        )
        self._uninitialised_visual = frozenset()


def _require_all(info: Any, source: Any) -> None:
    """Refuse a model some of whose weights came from nowhere; say on the log what was not used."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} weights are not in the checkpoint and would start at random: "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}. Is it complete, and is config.json its own? "
            "(`output_loading_info=True` gives the model all the same.)"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        logger.warning(
            f"{source}: {len(unexpected)} weights of the checkpoint have no place in the model, first {unexpected[0]}."
        )


def _let_others_read(folder: Path) -> None:
    """Give weights the rights of the files beside them; safetensors makes them private to the user."""
    config = folder / "config.json"
    if config.is_file():
        for path in folder.rglob("*.safetensors"):
            path.chmod(config.stat().st_mode & 0o777)
