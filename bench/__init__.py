# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what is measured (registry), how (timing, verify, ceilings), and the commands."""
