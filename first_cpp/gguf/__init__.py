"""Files: models, routers in their metadata, LoRA, and models that are merged, quantised, pruned or synthetic."""
