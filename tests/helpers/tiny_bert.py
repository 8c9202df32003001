"""A sentence encoder that fits in a test: one layer of eight numbers, random."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["a", "red", "blue", "green", "ring", "star", "circle"]


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of transformers that knows WORDS."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def write_model(folder: Path, seed: int) -> None:
    """Write a model of transformers with random weights."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
