# SPDX-License-Identifier: Apache-2.0
"""The ops `torch.ops.zspa.*`: what happens between a call and a backend.

    torch.ops.zspa.<op> -> implementation -> .._contract (check) -> normalise
                                          -> dispatch (choose) -> ..backends/<backend>/<op>.py

The implementations are plain functions with the signature of their schema and one more argument,
`backend`, which PyTorch's dispatcher never passes. `backend=` of the public functions arrives here
too (`call`), so a named backend gets the same checks and the same normalised arguments.
"""
