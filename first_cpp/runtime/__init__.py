"""What `Llama` is made of: layers, what has been read, answers, the choice of layers."""
