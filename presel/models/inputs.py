"""The inputs of a vision-language model for several samples, whatever its processor returns for images."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

Rows = slice | Tensor


class Inputs(Mapping[str, Tensor]):
    """Tensors of n samples by the names of a model's arguments.

    Those of text have a row per sample. Those of images have as many as a sample's images take, 0 for none:
    LLaVA-1.5 has one for an image, Qwen one for a patch, InternVL one for a tile. A tensor of no rows is left
    out, because models take its absence for text only.
    """

    def __init__(self, text: Mapping[str, Tensor], images: Sequence[Mapping[str, Tensor]] = ()) -> None:
        """Joins the tensors of images.

        Args:
            text: Tensors with a row per sample.
            images: For each sample, what the processor returned for its images.
        """
        tensors, counts = _joined(images)
        self._tensors = {**text, **tensors}
        # Rows of each sample, (n,), in the tensors of images.
        self._counts = counts

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> "Inputs":
        inputs = cls({})
        inputs._tensors, inputs._counts = dict(tensors), dict(counts)
        return inputs

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._tensors)

    def __or__(self, other: Mapping[str, Tensor]) -> "Inputs":
        """With other tensors, which replace those of the same name."""
        counts = other._counts if isinstance(other, Inputs) else {}
        return Inputs._of({**self._tensors, **other}, {**self._counts, **counts})

    def without(self, *names: str) -> "Inputs":
        """All but some tensors."""
        return Inputs._of({name: self[name] for name in self if name not in names}, self._counts)

    def of_text(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """With `change` applied to all tensors but those of images."""
        tensors = {name: one if name in self._counts else change(one) for name, one in self.items()}
        return Inputs._of(tensors, self._counts)

    def part(self, rows: Rows) -> "Inputs":
        """Some samples, in the order of `rows`: a slice, their numbers, or a mask."""
        counts = {name: own[rows] for name, own in self._counts.items()}
        tensors = {
            name: _parts(tensor, self._counts[name], rows) if name in counts else tensor[rows]
            for name, tensor in self._tensors.items()
        }
        kept = {name: tensor for name, tensor in tensors.items() if name not in counts or len(tensor)}
        return Inputs._of(kept, counts)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Inputs":
        """On a device; tensors of images that hold floats in `dtype`, if given."""

        def moved(name: str, tensor: Tensor) -> Tensor:
            is_image = name in self._counts and tensor.is_floating_point()
            return tensor.to(device, dtype if is_image else None)

        return Inputs._of({name: moved(name, one) for name, one in self._tensors.items()}, self._counts)


def _joined(samples: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The samples' tensors along their first axis, by name, and how many rows each sample has, (n,).

    Other axes differ only where an image has fewer tiles (LLaVA-NeXT, SmolVLM) or pixels (Pixtral) than
    another; those are padded with zeros at their ends, as the models' processors do.
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    tensors, counts = {}, {}
    for name in names:
        own = [sample[name] for sample in samples if name in sample]
        largest = [max(sides) for sides in zip(*(tensor.shape[1:] for tensor in own), strict=True)]
        tensors[name] = torch.cat([_padded(tensor, largest) for tensor in own])
        counts[name] = torch.tensor([len(sample[name]) if name in sample else 0 for sample in samples])
    return tensors, counts


def _padded(tensor: Tensor, sides: Sequence[int]) -> Tensor:
    if list(tensor.shape[1:]) == sides:
        return tensor
    missing = [side - own for own, side in zip(tensor.shape[1:], sides, strict=True)]
    # In pairs, what is added before and after, the last axis first.
    return pad(tensor, [add for after in reversed(missing) for add in (0, after)])


def _parts(tensor: Tensor, counts: Tensor, rows: Rows) -> Tensor:
    """The rows of `tensor` that belong to some samples; `counts`, (n,), says how many each has."""
    parts = torch.split(tensor, counts.tolist())
    chosen = torch.arange(len(counts))[rows].tolist()
    return torch.cat([parts[sample] for sample in chosen] or [tensor[:0]])
