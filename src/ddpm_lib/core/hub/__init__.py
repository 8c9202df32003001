"""Folders that hold a model as the Hugging Face hub does, and the hub itself."""
