"""Beginning a run from trained weights: where they lie, how they fit, and what holds on to them."""
