# SPDX-License-Identifier: Apache-2.0
"""The ops as Triton kernels. Importing this package imports nothing; its modules import triton."""
