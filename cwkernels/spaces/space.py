"""What a search space is: decisions, each with its candidates and its predecessors."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from cwkernels.spaces import checks

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


@dataclass(frozen=True)
class Candidate:
    """One operation that a decision can choose.

    ``weighted`` says whether it owns weight sets that the space counts; ``code`` is the operation's
    code, the same in every space of a benchmark; ``kernel_area`` sums height times width of its
    convolutions' kernels.
    """

    name: str
    weighted: bool
    code: int
    kernel_area: int = 0


@dataclass(frozen=True)
class Decision:
    """One place where a candidate is chosen.

    ``predecessors`` are the earlier decisions that its candidates' weights depend on.
    """

    name: str
    candidates: tuple[Candidate, ...]
    predecessors: tuple[int, ...]


@dataclass(frozen=True)
class Space(ABC):
    """A search space: an architecture is an int64 vector of D choices, one per decision.

    Choices count in the order of a decision's candidates, decisions from 0. Wherever a method takes
    an architecture it takes ``[D]``, or any number of them, ``[..., D]``, unless it says otherwise;
    it raises TypeError for what is not an int64 tensor and ValueError for a wrong last dimension or
    a choice out of range. Results lie on the argument's device, without one on the CPU.
    """

    name: str
    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        """Refuse a decision that depends on itself or on a later one."""
        for d, decision in enumerate(self.decisions):
            if not all(0 <= p < d for p in decision.predecessors):
                wanted = f"decisions before {d}"
                argument = f"decisions[{d}].predecessors"
                raise ValueError(checks.message("Space", argument, wanted, decision.predecessors))

    @property
    def num_decisions(self) -> int:
        """D, the length of an architecture."""
        return len(self.decisions)

    @property
    def num_candidates(self) -> tuple[int, ...]:
        """The number of candidates of each decision."""
        return tuple(len(decision.candidates) for decision in self.decisions)

    def __len__(self) -> int:
        """The number of architectures."""
        return prod(self.num_candidates)

    def __getitem__(self, i: int) -> Tensor:
        """The architecture of index ``i``, int64 ``[D]``; negative ``i`` count from the end."""
        try:
            number = operator.index(i)
        except TypeError:
            got = type(i).__name__
            raise TypeError(checks.message("space[i]", "i", "an int", got)) from None
        if not -len(self) <= number < len(self):
            wanted = f"in {-len(self)}..{len(self) - 1}"
            raise IndexError(checks.message("space[i]", "i", wanted, number))
        return torch.tensor(self._choices(number % len(self)), device="cpu")

    def __iter__(self) -> Iterator[Tensor]:
        """The architectures in index order, each int64 ``[D]``."""
        return (self[i] for i in range(len(self)))

    def index(self, arch: Tensor) -> int | Tensor:
        """The index: the mixed-radix number of the choices, decision 0 slowest.

        An int for ``[D]``, int64 ``[...]`` for ``[..., D]``. It is not NAS-Bench-201's own index.
        """
        arch = check_architecture(self, arch, "space.index")
        number = self._number(arch, range(self.num_decisions))
        return int(number) if arch.ndim == 1 else number

    def all(self) -> Tensor:
        """Every architecture in index order, int64 ``[len(space), D]``."""
        return torch.stack(self._choices(torch.arange(len(self), device="cpu")), dim=-1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``n`` architectures, uniform and with replacement, int64 ``[n, D]`` on the CPU.

        ``n`` draws at once are the same as ``n`` single draws in a row. ``generator`` must be a
        CPU generator (TypeError, ValueError); None takes torch's default one.
        """
        n = checks.integer("space.sample", "n", n, at_least=0)
        if generator is not None:
            _check_generator(generator)
        index = torch.randint(len(self), (n,), generator=generator, device="cpu")
        return torch.stack(self._choices(index), dim=-1)

    def check(self, arch: Tensor) -> Tensor:
        """``arch`` itself once validated: int64, last dimension D, each choice in range."""
        return check_architecture(self, arch, "space.check")

    def codes(self, arch: Tensor) -> Tensor:
        """The operation codes of the choices, int64 of the same shape."""
        return self._codes(check_architecture(self, arch, "space.codes"))

    def kernel_area(self, arch: Tensor) -> Tensor:
        """The kernel area of each choice, int64 ``[..., D]``: 9 for a 3x3, 1 for a 1x1."""
        arch = check_architecture(self, arch, "space.kernel_area")
        return self._look_up(arch, lambda candidate: candidate.kernel_area)

    def combinations(self, d: int) -> int:
        """The number of combinations of choices that decision ``d``'s predecessors can make."""
        d = checks.decision("space.combinations", "d", d, self.num_decisions)
        return prod(self.num_candidates[p] for p in self.decisions[d].predecessors)

    def combination(self, arch: Tensor, d: int) -> Tensor:
        """Which combination decision ``d``'s predecessors make, int64 ``[...]``.

        The mixed-radix number of their choices, the first predecessor slowest; 0 without any.
        """
        arch = check_architecture(self, arch, "space.combination")
        d = checks.decision("space.combination", "d", d, self.num_decisions)
        return self._number(arch, self.decisions[d].predecessors)

    def weight_sets(self, split: bool | Iterable[int] = False) -> int:
        """The number of weight sets of one cell or one network (paper section 3.3).

        One per weighted candidate, or one per weighted candidate and combination in a decision that
        is split: all of them for True, none for False, or those that an iterable names.
        """
        sets = sets_per_candidate(self, split, "space.weight_sets")
        return sum(
            rows * sum(candidate.weighted for candidate in decision.candidates)
            for rows, decision in zip(sets, self.decisions, strict=True)
        )

    def live(self, arch: Tensor) -> Tensor:
        """Where the choice is a weighted candidate that is not dead, bool ``[..., D]``.

        A candidate is dead if its output cannot reach the output or its input is identically zero.
        In a space where nothing can cut a network in two, every weighted choice is live.
        """
        arch = check_architecture(self, arch, "space.live")
        return self._look_up(arch, lambda candidate: candidate.weighted).bool()

    @abstractmethod
    def parse(self, string: str) -> Tensor:
        """The architecture that the benchmark's own ``string`` names, int64 ``[D]``; ValueError."""

    @abstractmethod
    def format(self, arch: Tensor) -> str:
        """The benchmark's own string for one architecture ``[D]``; inverse of ``parse``."""

    def _number(self, arch: Tensor, decisions: Iterable[int]) -> Tensor:
        number = arch.new_zeros(arch.shape[:-1])
        for d in decisions:
            number = number * self.num_candidates[d] + arch[..., d]
        return number

    def _choices(self, index: IntOrTensor) -> list[IntOrTensor]:
        choices = []
        for size in reversed(self.num_candidates):
            choices.append(index % size)
            index = index // size
        return choices[::-1]

    def _codes(self, arch: Tensor) -> Tensor:
        return self._look_up(arch, lambda candidate: candidate.code)

    def _look_up(self, arch: Tensor, fact: Callable[[Candidate], int]) -> Tensor:
        columns = [
            arch.new_tensor([fact(candidate) for candidate in decision.candidates])[arch[..., d]]
            for d, decision in enumerate(self.decisions)
        ]
        return torch.stack(columns, dim=-1)


def check_architecture(space: Space, arch: object, operation: str) -> Tensor:
    """``arch`` once validated as ``[..., D]``, for the error of ``operation``."""
    return checks.choices(operation, "arch", arch, space.num_candidates)


def check_one_architecture(space: Space, arch: object, operation: str) -> Tensor:
    """``arch`` once validated as a single ``[D]``, for the error of ``operation``."""
    arch = check_architecture(space, arch, operation)
    if arch.ndim != 1:
        wanted = f"of shape [{space.num_decisions}]"
        raise ValueError(checks.message(operation, "arch", wanted, list(arch.shape)))
    return arch


def check_string(string: object, operation: str) -> str:
    """``string`` once known to be one, for the error of ``operation``."""
    if not isinstance(string, str):
        raise TypeError(checks.message(operation, "string", "a str", type(string).__name__))
    return string


def sets_per_candidate(
    space: Space, split: bool | Iterable[int], operation: str
) -> tuple[int, ...]:
    """How many weight sets each weighted candidate of each decision has, length D."""
    chosen = checks.split_decisions(operation, split, space.num_decisions)
    return tuple(space.combinations(d) if d in chosen else 1 for d in range(space.num_decisions))


def _check_generator(generator: object) -> None:
    if not isinstance(generator, torch.Generator):
        got = type(generator).__name__
        raise TypeError(
            checks.message("space.sample", "generator", "a torch.Generator or None", got)
        )
    if generator.device.type != "cpu":
        raise ValueError(
            checks.message("space.sample", "generator", "on the CPU", generator.device)
        )
