"""What kernels of FP8 share: weights with their scales, and the way to and from other dtypes.

weight.py      a weight as it is stored
scaling.py     between FP8 and other dtypes: the definition
quantising.py  of activations, on GPUs
"""

from pds_kernels.fp8.scaling import dequantise, quantise_activation
from pds_kernels.fp8.weight import Block, Fp8Weight, has_fp8

__all__ = ["Block", "Fp8Weight", "dequantise", "has_fp8", "quantise_activation"]
