"""What every room uses: names and options, random keys, files, errors. Imports nothing of the
library.
"""
