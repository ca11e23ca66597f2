# SPDX-License-Identifier: Apache-2.0
"""Every rule about arguments, once.

Each op has one function here. It takes the op's own arguments (same order, same defaults), raises
the contract's errors, and returns the shape of the indices the op will produce. Implementations on
every device, named backends and fakes all call it, so no entry point knows a rule of its own.

Errors read `<op>: <argument> must <rule>, got <value>`:
    TypeError   a wrong kind of object or dtype, or None where something is required
    ValueError  a wrong rank, shape, range, device, layout or option

Values inside tensors are never looked at, and nothing is formatted unless it is raised.

Sizes are compared as `(k > n) is True`. In a fake they may be symbolic; then the comparison is no
bool, the rule passes without adding a guard, and the call on real tensors applies it.
"""
