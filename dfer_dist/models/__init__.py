"""Models: CLIP towers, prompts, temporal models, adapters, LoRA and DFER-CLIP."""
