"""What a file is that no allowed decoder knows, by its first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm_lib.data.values import tiff_bands

_SIGNATURES = (
    (b"<svg", "an SVG drawing: render it to PNG"),
    (b"<!doctype html", "a web page, not a picture (a failed download?)"),
    (b"<html", "a web page, not a picture (a failed download?)"),
    (b"%pdf", "a PDF document"),
    (b"8bps", "a Photoshop file: export it as PNG"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"\x93numpy", "a numpy array, not a picture"),
    (b"pk\x03\x04", "a zip archive"),
)


def what_is_it(file: Any, supported: Sequence[str]) -> str:
    """Say what a file is that no allowed decoder knows."""
    if hasattr(file, "seek"):
        file.seek(0)
        head = file.read(512)
    else:
        with open(file, "rb") as stream:
            head = stream.read(512)
    if not head:
        return "empty (zero bytes)"
    lower = head.lower().lstrip()
    for signature, words in _SIGNATURES:
        if lower.startswith(signature) or (signature == b"<svg" and b"<svg" in lower):
            return words
    described = tiff_bands(file)
    if described is not None:
        return described
    if head[4:8] == b"ftyp":
        return "HEIC, AVIF or video, which is not supported: convert it to JPEG or PNG"
    if not head.strip(b"\0"):
        return "only zero bytes (an interrupted copy?)"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file, not a picture"
    return f"not a picture of a supported format ({', '.join(supported)})"
