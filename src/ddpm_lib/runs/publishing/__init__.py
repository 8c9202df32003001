"""A run for others: its model folder, its card, and the way to the hub."""
