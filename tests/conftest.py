"""Triton's kernels are interpreted where no GPU is: Triton must know before it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
