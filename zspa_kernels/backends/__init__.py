# SPDX-License-Identifier: Apache-2.0
"""Backends: one package each, one module an op, the same functions with the same arguments.

Arguments arrive checked and normalised by `zspa_kernels._ops`: tokens `[B, N, D]` (packed:
`[T, D]`) with a last axis of stride 1 and any other strides; masks bool, seeds int64 and weights
float32, contiguous, or None; segment tables as made by `zspa_kernels._segments`; counts as ints
within range. Grad mode and autocast are off. A backend allocates its outputs and writes every
element of them.
"""
