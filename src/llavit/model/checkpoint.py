"""Weight names: LLaViT's own, and how those of LLaVA checkpoints map to them.

A LLaViT folder holds (`{i}` a layer, `{p}` q_proj, k_proj, v_proj, or qkv_proj where the LLM has them fused)

    model.vision_tower.*                                       the vision tower's own names
    model.multi_modal_projector.linear_{1,2}.{weight,bias}     the projector
    model.language_model.layers.{i}.self_attn.{p}.text.*       QKV of text tokens
    model.language_model.layers.{i}.self_attn.{p}.visual.*     QKV of visual tokens
    model.language_model.*                                     the rest of the LLM, its own names
    lm_head.weight                                             where it is not tied to the embeddings

Where weights are int8 (`quantize.py`), a `*.scale` stands beside each `*.weight` of the LLM's linear layers.

A LLaVA checkpoint (of either generation of transformers' names) loads into it: `...{p}.weight` becomes
`...{p}.text.weight`, and visual weights that a checkpoint lacks start as copies of the text weights. With `visual_qkv`
off it is the other way round: `...{p}.text.weight` becomes `...{p}.weight`, and visual weights are left out.
"""

import re

from llavit.model.configuration import LlavitConfig
from llavit.model.families import FAMILIES, Family, family_of

_LLAVA_PREFIXES = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.language_model.",
    r"^model\.language_model\.model\.": "model.language_model.",
    r"^model\.language_model\.lm_head\.": "lm_head.",
    r"^vision_tower\.": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}

VISUAL_KEY = re.compile(r"\.visual\.(weight|bias|scale)$")
"""Matches the names of visual QKV weights."""


def llava_key_mapping(config: LlavitConfig) -> dict[str, str]:
    """Return regular expressions that turn a LLaVA checkpoint's weight names into LLaViT's.

    Names that are LLaViT's already stay as they are. The result is meant for `key_mapping=` of transformers.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> mapping = llava_key_mapping(LlavitConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig()))
        >>> mapping["^language_model\\\\.lm_head\\\\."]
        'lm_head.'
    """
    mapping = dict(_LLAVA_PREFIXES)
    routed = config.visual_qkv
    family = family_of(config.llm) if routed else FAMILIES.get(config.llm.model_type, Family())
    for name in family.projections:
        # Lookarounds, so that only `q_proj.` itself is replaced, and only inside the LLM's layers.
        projection = rf"(language_model\.layers\.\d+\.{family.attention}\.{name})\."
        theirs, ours = ("", r"\1.text.") if routed else (r"text\.", r"\1.")
        mapping[rf"{projection}{theirs}(?=(?:weight|bias|scale)$)"] = ours
    return mapping
