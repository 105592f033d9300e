"""The model: configuration, routed QKV, visual mask, processor, building from parts."""
