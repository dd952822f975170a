"""`first-cpp tune`: from a file of examples to a tuned model that skips layers, in one command."""
