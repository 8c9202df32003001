"""Pictures in .zip and .tar archives, read in place: what archives hold, and the samples of
WebDataset.
"""
