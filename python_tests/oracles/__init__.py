# SPDX-License-Identifier: Apache-2.0
"""The methods' formulas in float64 and plain loops, one image at a time.

Written from the papers and not from the package: nothing here is imported from it.
"""
