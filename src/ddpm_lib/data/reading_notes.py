"""Words for how images are read while a network trains."""

from __future__ import annotations

from ddpm_lib.data.checking import ReadingOptions
from ddpm_lib.data.source import Source
from ddpm_lib.data.workers import default_num_workers


def streamed_note(
    source: Source, size: int, way: ReadingOptions, fits: bool, patches: bool = False
) -> str:
    """Say that images are read on demand, by how many, and why."""
    why = (
        f"{size / 1e9:.1f} GB decoded exceeds the cache limit of {way.limit / 1e9:.1f} GB"
        " (cache_limit_mb)"
    )
    if source.mtimes() is not None:
        why += '; cache="disk" (--cache disk) decodes once, to a file'
    if way.cache == "none":
        why = 'cache="none"'
    elif patches:
        why = "each reading takes another patch"
    elif fits:
        why = "they differ from reading to reading"
    streaming = way.num_workers if way.num_workers is not None else default_num_workers()
    return f"streamed by {streaming} worker{'s' * (streaming != 1)}: {why}"


def random_note(cached: bool, cache: str) -> str:
    """Say what is done with images that random transforms make."""
    if cached:
        how = "one version of each is kept in RAM, as asked for"
    else:
        how = 'each reading draws anew; cache="ram" (--cache ram) keeps one version of each'
        how += ', cache="none" (--cache none) streams in any case' if cache == "auto" else ""
    return (
        f"items differ from reading to reading (random transforms?): {how}; a resumed run compares"
        " their number and labels, not their contents"
    )
