"""LLaViT: vision-language models in which the LLM is itself an extended vision transformer."""
