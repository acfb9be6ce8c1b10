"""The shape of a model, as far as speed and memory follow from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVLayer:
    """One layer that keeps keys and values of earlier tokens."""

    values: int
    """Numbers that are kept of one token, keys and values together: ``2 * kv_heads * head_dim`` in most models."""
    width: int
    """Query heads times their size: what a product of queries and keys costs for one pair of tokens (where keys are
    longer than values, the mean of both)."""
    window: int | None = None
    """The most tokens that are kept, the newest included, and that a token attends to (sliding window, chunks);
    ``None``: all of them."""


@dataclass(frozen=True)
class ModelShape:
    """Numbers of weights by what is done with them, and what the layers keep of each token."""

    quantizable: int
    """Weights of the matrix products that formats quantize."""
    rest: int
    """All other parameters: embeddings, head, norms, biases. A table that embedding and head share counts once."""
    table: int = 0
    """Of the rest: tables of which a step reads single rows only (0 where the head is the table)."""
    head: int = 0
    """Weights of the product that gives the logits; the table's number where both are one."""
    routed: int = 0
    """Of the quantizable ones: those in experts that a router chooses among."""
    idle: int = 0
    """Of the quantizable ones: those that text never goes through (towers that see or hear)."""
    experts: int = 1
    experts_used: int = 1
    """By one token."""
    kv: tuple[KVLayer, ...] = ()
    """Empty: not known, or nothing is kept."""
    vocabulary: int | None = None
    hidden: int | None = None
    layers: int | None = None
    longest: int | None = None
    """The longest sequence that the position embedding knows."""
    rows: tuple[tuple[int, int], ...] = ()
    """Of the quantizable weights: length of a row (the inputs of a product) and how many there are. Empty: not known;
    then scales of rows are not counted."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.quantizable + self.rest

    @classmethod
    def of_parameters(cls, parameters: float) -> ModelShape:
        """A model of which only the number of parameters is known: all quantizable, no KV cache. ``ValueError`` unless
        it is above 0 and finite."""
        if not 0 < parameters < float("inf"):
            raise ValueError(f"a model has a number of parameters above 0, found {parameters}")
        return cls(round(parameters), 0)
