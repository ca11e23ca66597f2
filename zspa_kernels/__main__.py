# SPDX-License-Identifier: Apache-2.0
"""`python -m zspa_kernels`, the same as the command `zspa`."""

from __future__ import annotations

from zspa_kernels.cli import main

if __name__ == "__main__":
    main()
