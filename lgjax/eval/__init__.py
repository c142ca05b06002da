"""Scores of a checkpoint: what it predicts, how it is measured, what a report shows."""
