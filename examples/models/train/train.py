"""Trains the tiny model on a CPU: `python train.py --out ../tiny`.

Fixed step counts and seeds. The stages lengthen the context; the first one is an easier mix,
without which recall does not appear. Muon (https://kellerjordan.github.io/posts/muon) moves the
matrices, AdamW the rest.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from model import Tiny, export, initialise
from muon import Muon
from rows import EASY, FULL, IGNORED, Mix, Rows
from tokenizer import build, save
from torch import Tensor

SEED = 20


@dataclass(frozen=True)
class TrainingStage:
    """`steps` batches of `rows` rows of `length` tokens."""

    length: int
    rows: int
    steps: int
    mix: Mix = FULL


STAGES = (
    TrainingStage(64, 32, 420, EASY),
    TrainingStage(128, 32, 400),
    TrainingStage(256, 16, 480),
    TrainingStage(512, 8, 480),
    TrainingStage(1024, 5, 340),
    TrainingStage(2048, 3, 270),
)


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate: 2% warm-up, flat, linear to zero over the last 60%."""
    done = step / steps
    return min(1.0, (step + 1) / (0.02 * steps), (1 - done) / 0.6)


def optimizers(model: Tiny) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embedding and norms."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        (matrices if weight.dim() == 2 and "embed" not in name else others).append(weight)
    return [
        Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(folder: Path, every: int) -> None:
    """Trains through `STAGES` and exports to `folder`; prints a line every `every` steps."""
    torch.manual_seed(SEED)
    model = Tiny()
    initialise(model)
    rows = Rows(build(), SEED)
    for layer in model.layers:
        layer.compile(dynamic=False)
    both = optimizers(model)
    full = [group["lr"] for optimizer in both for group in optimizer.param_groups]
    total = sum(stage.steps for stage in STAGES)
    step = tokens = 0
    started = time.monotonic()
    for stage in STAGES:
        for _ in range(stage.steps):
            groups = [group for optimizer in both for group in optimizer.param_groups]
            for group, rate in zip(groups, full, strict=True):
                group["lr"] = rate * learning_rate(step, total)
            batch = rows.batch(stage.rows, stage.length, stage.mix, jumps=stage.length >= 256)
            loss = loss_of(model, *batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += stage.rows * stage.length
            if step % every == 0:
                spent = time.monotonic() - started
                print(
                    f"{step}/{total} T={stage.length} {tokens / 1e6:.2f}M {loss.item():.3f}"
                    f" {spent:.0f}s",
                    flush=True,
                )
            if step % (10 * every) == 0:
                export(model, folder)
    export(model, folder)
    save(folder)


def loss_of(model: Tiny, ids: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy over the assistant's tokens."""
    at = targets != IGNORED
    return F.cross_entropy(model(ids, positions, at), targets[at])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--threads", type=int, default=1, help="more only pay on idle cores")
    parser.add_argument("--every", type=int, default=20, help="steps between two lines")
    parser.add_argument("--untrained", action="store_true", help="export the initial weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.untrained:
        torch.manual_seed(SEED)
        model = Tiny()
        initialise(model)
        export(model, args.out)
        save(args.out)
    else:
        train(args.out, args.every)


if __name__ == "__main__":
    main()
