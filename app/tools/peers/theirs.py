"""Runs PyTorch's side: eager, as its users would write it, in the fastest settings.

    <environment of extra peers>/python -m app.tools.peers.theirs <task as JSON> <rank> <folder>

Memory formats and implementations of the optimizer are tried before the first turn, and the best is
kept. Several processes use DistributedDataParallel over Gloo. Its environment has none of this
project's packages: what it imports of `app` and `models` needs only the standard library.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from app.tools.peers import child, torch_models

TRIED_STEPS = 2


class Variant(NamedTuple):
    """Settings that a user may choose without changing the result."""

    memory_format: str
    optimizer: str  # its implementation: foreach or fused


class Trainer:
    """A training step on one batch.

    Args:
        task: as `Case.task` gives it.
        variant: of the implementation.
    """

    def __init__(self, task: Mapping[str, Any], variant: Variant) -> None:
        experiment = task["experiment"]
        self.rule: dict[str, Any] = experiment["optimization"]
        self.smoothing = experiment.get("objective", {}).get("label_smoothing", 0.0)
        self.is_bfloat16 = experiment["precision"] == "bfloat16"
        torch.manual_seed(0)
        memory_format = getattr(torch, variant.memory_format)
        model = torch_models.build(experiment["model"], task["classes"])
        self.inputs, self.targets = batch(task)
        if self.inputs.dim() == 4:
            model = model.to(memory_format=memory_format)
            self.inputs = self.inputs.contiguous(memory_format=memory_format)
        self.parameters = list(model.parameters())
        self.optimizer = optimizer(self.rule, self.parameters, task["rate"], variant.optimizer)
        self.model: nn.Module = model.train()
        if distributed.is_initialized():
            self.model = DistributedDataParallel(model)

    def run(self, steps: int) -> None:
        """Takes a number of steps."""
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_bfloat16):
                logits = self.model(self.inputs)
            loss = functional.cross_entropy(
                logits.float(), self.targets, label_smoothing=self.smoothing
            )
            loss.backward()
            if self.rule["clip_norm"]:
                nn.utils.clip_grad_norm_(self.parameters, self.rule["clip_norm"], foreach=True)
            self.optimizer.step()
            loss.item()


def batch(task: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns pixels [b, 3, H, W] or ids of tokens [b, T] without padding, and labels [b]."""
    shape, model = task["inputs"], task["experiment"]["model"]
    if len(shape) == 4:
        inputs = torch.randn(shape[0], 3, *shape[1:3])
    else:
        inputs = torch.randint(1, model["vocabulary"], shape)
    return inputs, torch.randint(task["classes"], shape[:1])


def optimizer(
    rule: Mapping[str, Any], parameters: list[nn.Parameter], rate: float, implementation: str
) -> torch.optim.Optimizer:
    """Returns SGD or AdamW, with weight decay only for matrices and kernels."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": rule["weight_decay"]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    options = {implementation: True}
    if rule["optimizer"] == "adamw":
        betas = (rule["momentum"], rule["beta2"])
        return torch.optim.AdamW(groups, rate, betas=betas, eps=rule["epsilon"], **options)
    return torch.optim.SGD(
        groups, rate, momentum=rule["momentum"], nesterov=rule["nesterov"], **options
    )


def fastest(task: Mapping[str, Any]) -> Variant:
    """Returns the fastest variant, chosen first by memory format, then by optimizer."""
    formats = ["contiguous_format", "channels_last"][: 2 if len(task["inputs"]) == 4 else 1]
    best = min([Variant(name, "foreach") for name in formats], key=lambda v: seconds(task, v))
    others = [best, best._replace(optimizer="fused")]
    return min(others, key=lambda v: seconds(task, v))


def seconds(task: Mapping[str, Any], variant: Variant) -> float:
    """Returns the seconds that some steps take, the same on every process."""
    trainer = Trainer(task, variant)
    trainer.run(1)
    begin = time.perf_counter()
    trainer.run(TRIED_STEPS)
    lasted = torch.tensor(time.perf_counter() - begin)
    if distributed.is_initialized():
        distributed.all_reduce(lasted)
    return float(lasted)


def main(text: str, rank: str, folder: str) -> None:
    """Joins the others, finds the fastest settings, and takes its turns."""
    task = json.loads(text)
    torch.set_num_threads(task["threads"])
    if task["processes"] > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=int(rank),
            world_size=task["processes"],
        )  # fmt: skip
    variant = fastest(task)
    trainer = Trainer(task, variant)
    facts = {
        "rank": int(rank),
        "threads": torch.get_num_threads(),
        "sizes": sorted(p.numel() for p in trainer.parameters),
        "version": f"PyTorch {torch.__version__}",
        "settings": f"{variant.memory_format}, {variant.optimizer} optimizer",
    }
    child.serve(folder, facts, trainer.run)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
