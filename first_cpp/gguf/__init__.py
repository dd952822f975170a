"""Files: models, routers in their metadata, LoRA, merging, pruned and synthetic models."""
