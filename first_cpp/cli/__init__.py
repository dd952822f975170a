"""The `first-cpp` command: the dispatcher, what verbs share, and the short verbs."""
