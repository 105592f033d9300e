"""The LLM's vocabulary as a measure: which words is a hidden state nearest to?

At the input a visual token is compared with the word embeddings, by cosine. Behind a layer the LLM's own final norm and
head say which word it would write (the logit lens); behind the last one that is what the model really computes.

Shapes: v tokens, k words, d LLM width, w vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch

PIECE = 1 << 26
"""Scores that are made at once: 256 MB in float32. A vocabulary is 32,000 to 260,000 words, an image 576 tokens."""

_WORD = re.compile(r"[^\W\d_]{2,}")
_FILLERS = {
    "of",
    "the",
    "and",
    "on",
    "with",
    "pair",
    "bunch",
    "head",
    "bulb",
    "clump",
    "bouquet",
    "ball",
    "spool",
    "bar",
    "roll",
}
# Words that say how much of a thing there is, or how it is, not what it is: "pair of scissors", "cup with straw".


class Vocabulary:
    """A model's words, by token id.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        whole_words: admit only tokens of two or more letters and nothing else, such as " cat"; else every token that is
            not special.

    Example:
        ```python
        words = Vocabulary(model, processor)
        ids, cosines = words.nearest_embeddings(at_input[0, visual], k=5)
        print([words.text[i] for i in ids[0]])
        ```
    """

    def __init__(self, model: Any, processor: Any, whole_words: bool = False):
        self.model, self.tokenizer = model, processor.tokenizer
        embeddings = model.get_input_embeddings()
        weight = getattr(embeddings, "weight", None)
        if weight is None or not weight.is_floating_point():  # quantised: as the model embeds it
            weight = embeddings(torch.arange(model.config.llm.vocab_size, device=model.device))
        self.embeddings_wd = weight.detach()
        rows = len(self.embeddings_wd)
        hidden = np.ones(rows, dtype=bool)  # rows that no token has
        hidden[[i for i in self.text if i < rows]] = False
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {i for i, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        hidden[[i for i in (*special, model.config.image_token_id) if i is not None and i < rows]] = True
        if whole_words:
            hidden[[i for i, text in self.text.items() if i < rows and not _WORD.fullmatch(text.strip())]] = (
                True
            )
        if hidden.all():
            raise ValueError("the vocabulary has no word" + (" of letters" if whole_words else ""))
        self.hidden_w = torch.from_numpy(hidden).to(self.embeddings_wd.device)

    @cached_property
    def text(self) -> dict[int, str]:
        """What each token writes."""
        ids = sorted(set(self.tokenizer.get_vocab().values()))
        return dict(zip(ids, self.tokenizer.batch_decode([[i] for i in ids]), strict=True))

    @torch.no_grad()
    def nearest_embeddings(self, x_vd: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the words whose embeddings have the largest cosine with each state.

        Computed in float32 whatever the model computes in: products in bfloat16 have two or three digits, which swaps
        words that are nearly as near, and those of long states overflow in float16.

        Args:
            x_vd: states at the input.
            k: how many words.

        Returns:
            (v, k) token ids, nearest first, and (v, k) cosines.
        """
        words_wd = self.embeddings_wd.float()
        lengths_w = words_wd.norm(dim=-1).clamp_min(1e-12)

        def cosines(x_pd: torch.Tensor) -> torch.Tensor:
            x_pd = x_pd.to(words_wd)
            return x_pd @ words_wd.T / lengths_w / x_pd.norm(dim=-1, keepdim=True).clamp_min(1e-12)

        return self._largest(cosines, x_vd, k)

    @torch.no_grad()
    def nearest_outputs(self, h_vd: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest words behind the LLM's final norm and head.

        As in LLaVA, no softcap follows the head, whatever the LLM's configuration says of one; it would not change
        which words are nearest.

        Args:
            h_vd: states behind a layer, before the final norm.
            k: how many words.

        Returns:
            (v, k) token ids, likeliest first, and (v, k) probabilities, over the whole vocabulary.
        """

        def logarithms(h_pd: torch.Tensor) -> torch.Tensor:
            return self.model.lm_head(self.model.model.language_model.norm(h_pd)).float().log_softmax(-1)

        ids, likelihoods = self._largest(logarithms, h_vd, k)
        return ids, np.exp(likelihoods)

    def _largest(
        self, score: Callable[[torch.Tensor], torch.Tensor], x_vd: torch.Tensor, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give the k words of the largest scores, some states at a time."""
        count = int((~self.hidden_w).sum())
        if not 1 <= k <= count:
            raise ValueError(f"k={k}: expected 1 to {count}, the number of words")
        found = []
        for part in x_vd.split(max(1, PIECE // len(self.hidden_w))):
            scores_pw = score(part)
            hidden = self.hidden_w[: scores_pw.shape[-1]]
            found.append([each.cpu() for each in scores_pw.masked_fill_(hidden, -torch.inf).topk(k, dim=-1)])
        scores, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
        return ids.numpy().astype(np.int32), scores.numpy()

    def naming(self, names: dict[str, Iterable[str]]) -> dict[str, list[int]]:
        """Return the tokens that name each thing.

        A token names a thing if, without case and surrounding spaces, it is a word of one of the thing's names. Where
        the vocabulary has no such word, the piece by which the word begins names it (" dart" a dartboard), provided
        that it has three letters or more and is no word of another thing's names ("car" is no carrot). A word that
        begins with one of the thing's own that the vocabulary has, such as its plural, is not looked for by its
        beginning: that of "butters" is "but".

        Args:
            names: thing to all its names, in singular and plural.

        Returns:
            thing to token ids.

        Example:
            ```python
            words.naming({"dog": ["dog", "dogs", "puppy"]})
            ```
        """
        by_text: dict[str, list[int]] = {}
        for i, text in self.text.items():
            if i < len(self.hidden_w) and not self.hidden_w[i]:
                by_text.setdefault(text.strip().lower(), []).append(i)
        words = {thing: _words_of(own) for thing, own in names.items()}
        every = set().union(*words.values())
        return {
            thing: sorted(
                {
                    i
                    for word in own
                    for text in self._texts_for(word, own, by_text, every)
                    for i in by_text[text]
                }
            )
            for thing, own in words.items()
        }

    def _texts_for(
        self, word: str, own: set[str], by_text: dict[str, list[int]], every: set[str]
    ) -> list[str]:
        if word in by_text:
            return [word]
        if any(other in by_text and word.startswith(other) for other in own):
            return []
        found = []
        for form in (f" {word}", word, f" {word.capitalize()}"):
            pieces = self.tokenizer.encode(form, add_special_tokens=False)
            begin = next((p for p in (self.text.get(i, "").strip().lower() for i in pieces) if p), "")
            if len(begin) >= 3 and word.startswith(begin) and begin not in every and begin in by_text:
                found.append(begin)
        return list(dict.fromkeys(found))


def _words_of(names: Iterable[str]) -> set[str]:
    """Words of names, in lower case, without those that say how much; a name without letters as it is."""
    words: set[str] = set()
    for name in names:
        found = _WORD.findall(name.lower()) or [name.strip().lower()]
        words |= {word for word in found if word not in _FILLERS or found == [word]}
    return words
