# SPDX-License-Identifier: Apache-2.0
"""The reference backend: plain PyTorch, slow and obvious. It defines what is correct.

One segment at a time, one pick at a time. Every number comes from row-local arithmetic: products
and sums in float64 in one fixed order, rounded once to float32. So a row gives the same bits alone,
in a batch, with any strides and on any number of threads. Decisions are read on the host: on CUDA
tensors this backend synchronises, and it cannot be captured in a CUDA graph.
"""
