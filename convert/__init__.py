"""Routers into GGUF files."""
