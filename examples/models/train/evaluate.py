"""Accuracy of the tiny model on fresh tasks: `python evaluate.py ../tiny`.

An answer is right when greedy decoding would say it whole, `<|end|>` included. That is so exactly
when every one of its tokens scores highest after the ones before it, so one pass over prompt
and answer decides, and also gives the margin: by how much the right token leads, at its weakest.
"""

import argparse
from pathlib import Path

import torch
from model import Tiny, load
from tasks import Task, draw
from tokenizers import Tokenizer

# (kind, context tokens, size)
CASES = (
    ("recall", 128, 1), ("recall", 256, 1), ("recall", 512, 1), ("recall", 1024, 1),
    ("recall", 1024, 8), ("recall", 2000, 1),
    ("copy", None, 40), ("copy", None, 120), ("copy", None, 200), ("copy", 512, 100),
    ("count", None, 20), ("count", None, 60), ("sum", None, None), ("sum", 512, None),
    ("greeting", None, None),
)  # fmt: skip


def chat(task: Task) -> str:
    """The prompt as the chat template writes it."""
    said = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in task.messages)
    return said + "<|assistant|>"


@torch.inference_mode()
def margin(model: Tiny, tokenizer: Tokenizer, task: Task) -> float:
    """How far the right token leads, at the answer's weakest place; negative: answered wrong."""
    prompt = tokenizer.encode(chat(task)).ids
    answer = tokenizer.encode(task.answer + "<|end|>").ids
    ids = torch.tensor([prompt + answer[:-1]])
    scores = model(ids, torch.arange(ids.shape[1])[None])[0, len(prompt) - 1 :]
    right = torch.tensor(answer)[:, None]
    others = scores.scatter(1, right, float("-inf")).amax(1)
    return float((scores.gather(1, right)[:, 0] - others).min())


def print_table(folder: Path, count: int, dtype: torch.dtype) -> None:
    """A Markdown table over `CASES`, `count` tasks each, a line as soon as it is known."""
    model = load(folder).to(dtype)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    print("| kind | context tokens | size | right | weakest lead of a right answer | lead ≥ 0.5 |")
    print("|---|---|---|---|---|---|")
    for kind, context, size in CASES:
        margins = [margin(model, tokenizer, draw(kind, i, context, size)) for i in range(count)]
        right = [value for value in margins if value > 0]
        sure = sum(value >= 0.5 for value in margins)
        print(
            f"| {kind} | {context or '–'} | {size or '–'} | {len(right) / count:.1%}"
            f" | {min(right, default=0.0):.2f} | {sure / count:.1%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="tasks of each case")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    print_table(args.folder, args.count, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
