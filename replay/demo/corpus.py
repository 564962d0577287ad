"""The demonstration's English text, its tokenizer and its blocks of tokens."""

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Paragraphs", "build_tokenizer", "cut_blocks", "read_corpus"]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"

HELD_OUT = 20
"""One paragraph in so many is held out for validation."""


class Paragraphs(NamedTuple):
    """The corpus, parted into what is trained on and what is not."""

    train: list[str]
    validation: list[str]


def read_corpus() -> Paragraphs:
    """Read the corpus shipped with the package; its sources and licences are in `data/NOTICE`."""
    text = (resources.files("replay.demo") / "data" / "corpus.txt").read_text(encoding="utf-8")
    paragraphs = text.strip().split("\n\n")
    train = [paragraph for index, paragraph in enumerate(paragraphs) if index % HELD_OUT]
    return Paragraphs(train, paragraphs[::HELD_OUT])


def build_tokenizer(paragraphs: Sequence[str], *, n_vocabulary: int, max_length: int) -> Any:
    """Train a byte-level BPE on the paragraphs, as a transformers tokenizer.

    Ids 0 and 1 are the end of a text and padding. The same paragraphs always give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocabulary,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=max_length,
    )


def cut_blocks(paragraphs: Sequence[str], tokenizer: Any, *, n_context: int) -> "Tensor":
    """Join the paragraphs' tokens, each ended by the end-of-text token, and cut them into (block, n_context)."""
    import torch

    texts = tokenizer(list(paragraphs), verbose=False)["input_ids"]  # else it warns of texts above n_positions
    ids = [token for text in texts for token in (*text, tokenizer.eos_token_id)]
    n_blocks = len(ids) // n_context
    return torch.tensor(ids[: n_blocks * n_context]).reshape(n_blocks, n_context)
