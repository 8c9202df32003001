"""Suffixes of picture files: which are read, and by which tool; which of them are stored with
loss.
"""

from __future__ import annotations

JPEG = frozenset((".jpg", ".jpeg", ".jpe", ".jfif"))
LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"))
"""What holds pixels unchanged; webp and gif may hold either."""
PICTURES = frozenset(
    s.encode() for s in (*JPEG, *LOSSLESS, ".apng", ".webp", ".dib", ".gif", ".pbm")
)
"""What counts as a picture in a folder, as bytes, as names of files are."""
FIDELITY = frozenset((".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""What torch-fidelity and pytorch-fid take for a picture."""
_OTHERS = b".heic .heif .avif .svg .psd .raw .cr2 .cr3 .nef .arw .dng .jp2 .jxl .exr .pdf .eps .ico"
UNSUPPORTED = frozenset(_OTHERS.split())
"""Pictures that are not read; they are named in a note."""
