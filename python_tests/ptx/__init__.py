# SPDX-License-Identifier: Apache-2.0
"""Runs the PTX of Triton kernels on a machine of our own: what a GPU would do, lane by lane."""
