"""Measured values instead of pictures: any type and number of channels, normalised for training and
brought back to their units.
"""
