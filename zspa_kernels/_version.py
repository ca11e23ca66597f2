# SPDX-License-Identifier: Apache-2.0
"""The version of the package, in one place: setup.py and CMake read this line as text."""

__version__ = "0.1.0"
