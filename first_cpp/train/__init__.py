"""Training routers and LoRA in PyTorch, by the rule that inference follows (needs the train extra)."""
