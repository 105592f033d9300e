"""Looking inside a model: what the LLM does with visual tokens. Knows nothing of training and serving."""
