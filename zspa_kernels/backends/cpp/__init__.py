# SPDX-License-Identifier: Apache-2.0
"""Thin calls of the native CPU kernels (csrc/): tensors become addresses, sizes and strides."""
