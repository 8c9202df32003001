"""The run directory: checkpoints, state, records, status; readable without a Trainer."""
