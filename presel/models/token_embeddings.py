"""Vectors of texts from a model's token embeddings, without running the model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag, normalize

from presel.models.conversations import ConversationEncoder
from presel.models.lvlm import Lvlm


class TokenEmbeddings:
    """The input embeddings of a model's language model, and its tokenizer."""

    def __init__(self, lvlm: Lvlm) -> None:
        """Loads both."""
        self._conversations = ConversationEncoder(lvlm)
        self._weights = lvlm.load_model().get_input_embeddings().weight.detach().float()  # (vocabulary, d)

    def means(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """The mean embedding of each text's tokens, divided by its norm, (n, d); 0 for an empty text."""
        ids = [self._conversations.text_tokens(text) for text in texts]
        starts = np.cumsum([0, *map(len, ids)])[:-1]  # (n,)
        flat = torch.tensor([token for one in ids for token in one], dtype=torch.long)
        means = embedding_bag(flat, self._weights, torch.from_numpy(starts), mode="mean")  # (n, d)
        return normalize(means).half().numpy()
