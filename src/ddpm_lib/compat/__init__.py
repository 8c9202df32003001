"""Classes with the names and arguments of other libraries, made of ours: a script changes its
import line alone.
"""
