"""Loops over weights, compiled by numba on first use, and their plain numpy twins.

`cpu` has what signs need, `symbols` what the exact coding needs, `lookup` what merges of one-bit
task vectors need; `reference` has the same functions in numpy, and tests compare the two bit for
bit. `torch_reference` and `gpu` (Triton) rebuild and merge on a device. CPU kernels are
single-threaded and hold no GIL: parallelism is the caller's thread pool over row blocks and chunks,
since numba's own threading layer is not safe under several Python threads or after a fork. No
fast-math, and every sum has a stated order, so that results do not depend on threads, blocks or
machine. Arrays hold bit patterns: uint16 for BF16 and F16, uint32 for F32.
"""
