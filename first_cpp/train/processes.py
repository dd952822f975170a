"""The processes that train one model together, under Accelerate: one alone, or those that torchrun started."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import FirstCppError, OptionError

PATIENCE = datetime.timedelta(days=30)
"""Others wait while the main process has the dense model answer and searches; one that dies is torchrun's to notice."""

T = TypeVar("T")


class Processes:
    """What they share and how.

    n: how many there are. number: of this one, from 0, the main process. device: this one's. Raises OptionError where there are
    fewer GPUs than processes.
    """

    def __init__(self) -> None:
        """Those that the environment names, as torchrun, `accelerate launch` and `launch` set it."""
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        wanted = int(os.environ.get("WORLD_SIZE", "1"))
        has_gpu = torch.cuda.is_available() or torch.xpu.is_available()
        n_gpu, n_here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if wanted > 1 and 0 < n_gpu < n_here:
            raise OptionError(f"--processes: each needs a GPU of its own, {n_gpu} are here, {n_here} are wanted")
        only_cpu = True if wanted > 1 and not has_gpu else None  # Accelerate does not see it by itself
        self.accelerator: Any = Accelerator(cpu=only_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self.n: int = self.accelerator.num_processes
        self.number: int = self.accelerator.process_index
        device: torch.device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" is none that torch.load knows

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.number == 0

    def own(self, of: Sequence[T]) -> list[T]:
        """This process's part: every n-th."""
        return list(of[self.number :: self.n])

    def gathered(self, own: Sequence[T]) -> list[T]:
        """The parts of all processes, in the order of what `own` took them from; they must be plain values."""
        if self.n == 1:
            return list(own)
        from accelerate.utils import gather_object

        parts = gather_object([list(own)])
        return [one for turn in itertools.zip_longest(*parts, fillvalue=_NOTHING) for one in turn if one is not _NOTHING]

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, given to all; the others wait. An error of ours there is raised in all."""
        if self.n == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made: list[Any] = [None, None]
        if self.is_main:
            try:
                made[0] = make()
            except FirstCppError as error:
                made[1] = error
        found, failure = broadcast_object_list(made)
        if failure is not None:
            raise failure
        result: T = found
        return result

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self.n == 1:
            return list(values)
        summed: Tensor = self.accelerator.reduce(torch.tensor(values, device=self.device, dtype=torch.float32), reduction="sum")
        return [float(value) for value in summed]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give all parameters the sum of their gradients over all processes, none where none has one."""
        if self.n == 1:
            return
        held = self.sums([float(p.grad is not None) for p in parameters])
        learned = [p for p, has in zip(parameters, held, strict=True) if has]
        if not learned:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned])
        summed: Tensor = self.accelerator.reduce(flat, reduction="sum")
        begin = 0
        for p in learned:
            p.grad = summed[begin : begin + p.numel()].view_as(p)
            begin += p.numel()

    def end(self) -> None:
        """All have done their part."""
        if self.n > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


_NOTHING: Any = object()
