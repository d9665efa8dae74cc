"""Loops over weights: numba on the CPU (`cpu`), and their plain numpy twins (`reference`).

Both offer the same functions and agree bit for bit; codecs use `cpu`, tests compare the two.
Arrays hold bit patterns: uint16 for BF16 and F16, uint32 for F32.
"""
