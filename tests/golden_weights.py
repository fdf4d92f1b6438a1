"""Weights and inputs of the golden files, rebuilt from names and seeds (tests/golden/README.md).

Not a test itself: the other test files import it.
"""
import re, zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'
# the last batch norm of a residual block and those of the fusion grid: drawn small, so that sums stay of order one
SMALL_BN = re.compile(r'\.bn3\.weight$|branches\.\d+\.\d+\.bn2\.weight$'
                      r'|deconv_layers\.\d+\.\d+\.\d+\.bn2\.weight$|\.fuse_layers\..*\.weight$')
SMALL_OUT = re.compile(r'(^|\.)(final_layers\.\d+|classifier)\.weight$')
DECONV = re.compile(r'^deconv_layers\.\d+\.0\.0\.weight$')  # a transposed convolution is stored as (in, out, kh, kw)


def golden_entry(name, shape, salt=''):
    "The array that belongs to an official parameter or buffer `name` of this `shape`"
    if name.endswith('num_batches_tracked'): return np.array(1, dtype=np.int64)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode())))
    if name.endswith('.weight') and len(shape) > 1:
        fan_in = shape[0] * shape[2] * shape[3] / 4 if DECONV.search(name) else int(np.prod(shape[1:]))
        value = rng.standard_normal(shape) * (np.sqrt(2.0) / np.sqrt(fan_in))
        if SMALL_OUT.search(name): value = value * 0.1
    elif name.endswith('.weight'):
        value = rng.uniform(0.5, 1.5, shape)
        if SMALL_BN.search(name): value = value * 0.2
    elif name.endswith(('.bias', '.running_mean')): value = rng.standard_normal(shape) * 0.1
    elif name.endswith('.running_var'): value = rng.uniform(0.5, 1.5, shape)
    else: raise KeyError(name)
    return value.astype(np.float32)


def golden_input(seed, shape):
    "The float32 input tensor that belongs to a seed"
    return np.random.Generator(np.random.PCG64(int(seed))).standard_normal(tuple(shape)).astype(np.float32)


def golden_state(model, salt=''):
    "A complete state dict of golden weights for `model`, whose names are the official ones"
    return {name: torch.from_numpy(np.array(golden_entry(name, tuple(value.shape), salt)))
            for name, value in model.state_dict().items()}


def load_golden(model, salt=''):
    "Fill `model` with golden weights and hand it back in evaluation mode"
    model.load_state_dict(golden_state(model, salt), strict=True)
    return model.eval()
