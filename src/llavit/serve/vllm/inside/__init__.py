"""What runs inside vLLM and imports it; loaded by name from there, never from the rest of llavit."""
