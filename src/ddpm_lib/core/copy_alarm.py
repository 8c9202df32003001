"""The level of tests for copies of training images, one for all that name them."""

COPY_ALARM = 0.002
"""Level of one test of memorisation: p-values up to it ring. An evaluation makes a few, so that
fewer than one in twenty rings falsely.
"""
