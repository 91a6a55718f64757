"""The dynamic replay buffer of SSD-KD, with priority sampling and importance-sampling weights.

Schaul et al., Prioritized Experience Replay, ICLR 2016; Liu et al., Small Scale Data-Free Knowledge Distillation,
CVPR 2024. Everything lives on the device: images as uint8, and nothing here waits for the device. What `sample` and
`update_priority` read are tensors of fixed size, changed in place: a captured step goes on with their new values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batch import per_sample
from kd.settings.shapes import Replay


class Drawn(NamedTuple):
    """Samples drawn from the buffer."""

    index: Tensor  # [B] int64, slots
    weight: Tensor  # [B] float, importance-sampling weights for the loss
    feedback: Tensor  # [B] float, w_(i-1) of the priority's equation in `update_priority`


class ReplayBuffer:
    """Holds up to `capacity` synthetic images [C, S, S]; new ones replace old ones once it is full."""

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        num_classes: int,
        settings: Replay,
        device: torch.device,
        dense: bool = False,
    ):
        """dense: of segmentation, a sample's classes are a map [S, S]."""
        self.capacity, self.settings = capacity, settings
        self.images = torch.zeros((capacity, *image_shape), dtype=torch.uint8, device=device)
        of_image, kind = (image_shape[1:], torch.uint8) if dense else ((), torch.int64)
        self.classes = torch.zeros((capacity, *of_image), dtype=kind, device=device)
        self.labels_each = self.classes[0].numel()  # of a sample
        self.priority = torch.zeros(capacity, device=device)  # |delta|
        self.seen = torch.zeros(capacity, dtype=torch.bool, device=device)  # has had its priority from the student
        self.class_counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.beta = torch.full((), settings.beta, dtype=torch.float64, device=device)
        self.size = 0  # slots in use; known on the host
        self._used = torch.zeros((), dtype=torch.int64, device=device)  # the same number
        self._slot = torch.arange(capacity, device=device)
        self._next = 0  # the oldest slot, once full
        self._order = torch.zeros(0, dtype=torch.int64, device=device)  # slots to draw, where none is drawn twice
        self._place = torch.zeros((), dtype=torch.int64, device=device)  # in that order

    def class_share(self, classes: Tensor) -> Tensor:
        """Return the share of each given class [B] among the stored samples, [B]; 0 while the buffer is empty.

        Of segmentation, [B, S, S], it is the share among the stored pixels, mean over an image's.
        """
        return per_sample(self.class_counts[classes] / (self._used * self.labels_each).clamp_min(1))

    def add(self, images: Tensor, classes: Tensor, phi: Tensor, generator: torch.Generator) -> None:
        """Store uint8 images [B, C, S, S], their classes [B], or [B, S, S], and modulation values [B].

        Free slots are filled first; then the oldest, the lowest-priority or random samples are replaced (setting
        `replacement`). Only the first `capacity` samples of a batch larger than the buffer are stored, and of a batch
        for a full buffer the share `admitted`, at least one.
        """
        share = self.settings.admitted if self.size == self.capacity else 1.0
        count = min(self.capacity, max(1, round(share * len(classes))))
        images, classes, phi = (values[:count] for values in (images, classes, phi))
        if self.settings.initial_priority == "max" and self.size:
            priority = self.priority[: self.size].max().expand_as(phi)
        elif self.settings.initial_priority == "max":
            priority = torch.ones_like(phi)
        else:
            priority = phi
        slots = self._slots(len(classes), generator)
        ones = torch.ones_like(classes, dtype=torch.int64)
        if self.size == self.capacity:
            self._count(self.classes[slots], -ones)
        else:  # only the reused slots held a sample
            held = (slots < self.size).view(-1, *(1 for _ in classes.shape[1:]))
            self._count(self.classes[slots], -held.long() * ones)
        self._count(classes, ones)
        self.images[slots] = images
        self.classes[slots] = classes.to(self.classes.dtype)
        self.priority[slots] = priority.to(self.priority.dtype)
        self.seen.index_fill_(0, slots, False)  # a number put by index would be copied to the device, with a wait
        self._resize(min(self.capacity, self.size + len(classes)))

    def _count(self, classes: Tensor, by: Tensor) -> None:
        """Change the counts of classes by a number each, both of one shape; IGNORED pixels are of no class."""
        known = classes < len(self.class_counts)
        self.class_counts.index_add_(0, torch.where(known, classes, 0).flatten().long(), (by * known).flatten())

    def _resize(self, size: int) -> None:
        self.size = size
        self._used.fill_(size)

    def _slots(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the slots of `count` new samples: free ones first, then those that are replaced."""
        device = self.images.device
        free = torch.arange(self.size, min(self.capacity, self.size + count), device=device)
        missing = count - len(free)
        if not missing:
            return free
        if self.settings.replacement == "oldest":
            taken = (torch.arange(missing, device=device) + self._next) % self.capacity
            self._next = (self._next + missing) % self.capacity
        elif self.settings.replacement == "lowest":
            taken = self.priority[: self.size].sort(stable=True).indices[:missing]
        elif self.settings.replacement == "random":
            taken = torch.randperm(self.size, generator=generator, device=device)[:missing]
        else:
            raise ValueError(f"replay.replacement: got {self.settings.replacement!r}; allowed: oldest, lowest, random")
        return torch.cat([free, taken])

    def anneal(self, progress: float) -> None:
        """Set beta by the training's progress, 0 to 1: from `beta` to `final_beta` in a straight line."""
        first, last = self.settings.beta, self.settings.final_beta
        self.beta.fill_(first if last is None else first + progress * (last - first))

    def probabilities(self) -> Tensor:
        """Return P of all slots, [capacity], float64; 0 for free ones:

        P_i = (|delta_i| + eps)^alpha / sum_j (|delta_j| + eps)^alpha
        """
        powers = (self.priority.double() + self.settings.eps) ** self.settings.alpha
        powers = torch.where(self._slot < self._used, powers, 0.0)
        return powers / powers.sum()

    def weights(self, probabilities: Tensor) -> Tensor:
        """Return the importance-sampling weights w = (N * P)^(-beta), float64, for probabilities of slots in use."""
        return (self._used * probabilities) ** -self.beta

    def shuffle(self, count: int, generator: torch.Generator) -> None:
        """Unless drawn with replacement, lay out the slots of the next `count` draws: shuffled passes over the buffer.

        Every call must ask for the same `count`.
        """
        if self.settings.with_replacement:
            return
        device = self.images.device
        passes = [torch.randperm(self.size, generator=generator, device=device) for _ in range(-(-count // self.size))]
        if not len(self._order):
            self._order = torch.zeros(count, dtype=torch.int64, device=device)
        self._order.copy_(torch.cat(passes)[:count])
        self._place.zero_()

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw `count` slots from P, with replacement, by inverting its cumulative sum; or the next of `shuffle`."""
        probabilities = self.probabilities()
        if not self.settings.with_replacement:
            index = self._order[self._place + torch.arange(count, device=self._order.device)]
            self._place += count
            return self._drawn(index, probabilities)
        steps = probabilities.cumsum(0)
        uniform = torch.rand(count, generator=generator, device=steps.device, dtype=torch.float64) * steps[-1]
        index = torch.searchsorted(steps, uniform, right=True)
        return self._drawn(torch.minimum(index, self._used - 1), probabilities)

    def everything(self) -> Drawn:
        """Return every slot in use, once."""
        return self._drawn(torch.arange(self.size, device=self.images.device), self.probabilities())

    def _drawn(self, index: Tensor, probabilities: Tensor) -> Drawn:
        """Return the slots with their weights; `normalise_weights` divides the loss's by the largest one drawn."""
        weights = self.weights(probabilities[index])
        scale = weights.max() if self.settings.normalise_weights else 1.0
        before = weights if self.settings.priority_feedback else torch.ones_like(weights)
        feedback = torch.where(self.seen[index], before, 1.0)
        return Drawn(index, (weights / scale).float(), feedback.float())

    def update_priority(self, drawn: Drawn, divergence: Tensor) -> None:
        """Set the priorities of drawn slots from the student's divergence [B] from the teacher on them:

            delta_i = w_(i-1) * KL

        with w_(i-1) = (N * P_(i-1))^(-beta) the weight that the sample had when it was drawn, 1 for a new sample
        (published form); 1 for all with `priority_feedback` off. A slot that was drawn more than once keeps the
        largest value, whatever the order on the device.
        """
        delta = (drawn.feedback * divergence.float()).abs()
        self.priority.scatter_reduce_(0, drawn.index, delta, "amax", include_self=False)
        self.seen.index_fill_(0, drawn.index, True)

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("images", "classes", "priority", "seen", "class_counts")},
            "size": self.size,
            "next": self._next,
            "order": self._order,
            "place": self._place,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("images", "classes", "priority", "seen", "class_counts"):
            getattr(self, name).copy_(state[name])
        self._resize(state["size"])
        self._next = state["next"]
        self._order = state["order"].to(self.images.device)
        self._place.copy_(state["place"])
