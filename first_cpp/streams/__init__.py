"""Many prompts answered in one context, several at a time: the weights are read once for all of them."""
