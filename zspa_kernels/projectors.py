# SPDX-License-Identifier: Apache-2.0
"""Projectors of vision-language models, read from their modules.

A projector is understood if its parts, in the order in which they were registered, are

    [norm,] Linear, activation, Linear      or      [norm,] Linear

whatever they are called and however they are nested: LLaVA and LLaVA-NeXT (`linear_1`, `act`,
`linear_2`, or a Sequential), InternVL (`layer_norm` or `mlp1[0]` first), the mergers of Qwen2-VL,
Qwen2.5-VL (`ln_q`, `mlp`) and Qwen3-VL (`norm`, `linear_fc1`, `act_fn`, `linear_fc2`). The
activation is recognised by what it computes. What was read is then compared with what the module
computes: a projector that does anything else is refused, never misread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ._activations import ACTIVATIONS
from ._contract import sensitivity as _rules
from ._contract import tensors as _tensors
from ._contract import values as _values

_FAMILY = "[norm,] Linear, activation, Linear or [norm,] Linear"


@dataclass(frozen=True, eq=False)
class Projector:
    """`P(x) = W2 act(W1 x + b1) + b2` behind an optional norm; or `W1 x + b1` alone.

    Perturbations, and so sensitivities, are those of x: behind the norm, where it exists, and
    behind the merging of neighbouring patches that goes with it.

    Attributes:
        w1: `[H, D]`.
        b1: `[H]` or None.
        w2: `[O, H]`; None for a single Linear.
        b2: `[O]` or None.
        activation: see `SensitivityPlan`.
        norm: applied to the features; None for none.
        norm_width: channels the norm works on. Features of fewer than D channels are merged: D / C
            of them, one after another, are one token.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 6)
        ... )
        >>> projector = read_projector(module)
        >>> projector.activation, projector.w1.shape
        ('gelu', torch.Size([8, 4]))
    """

    w1: Tensor
    b1: Tensor | None = None
    w2: Tensor | None = None
    b2: Tensor | None = None
    activation: str = "identity"
    norm: Callable[[Tensor], Tensor] | None = None
    norm_width: int = 0

    def inputs(self, features: Tensor, op: str = "Projector") -> Tensor:
        """What the first layer is given, `[B, N, D]` or `[N, D]`, for the projector's features."""
        _values.tensor(op, "features", features)
        D, shape = self.w1.shape[1], list(features.shape)
        width = shape[-1] if shape else 0
        if self.norm is None:
            if width != D:
                raise ValueError(f"{op}: features must have D={D} channels, got {shape}")
            return features
        if features.ndim not in (2, 3) or width < 1 or D % width or shape[-2] * width % D:
            raise ValueError(f"{op}: features must be [..., T, C] that merge to D={D}, got {shape}")
        merged = [*shape[:-2], shape[-2] * width // D, D]
        features = features.to(self.w1.dtype)  # a norm takes no other
        if self.norm_width == D:
            return self.norm(features.reshape(merged))
        if width != self.norm_width:
            raise ValueError(f"{op}: features must have C={self.norm_width}, got {shape}")
        return self.norm(features).reshape(merged)

    def with_output(self, w2: Tensor) -> Projector:
        """The same with another second layer, without its bias."""
        return replace(self, w2=w2, b2=None)

    def outputs(self, features: Tensor, op: str = "Projector") -> Tensor:
        """P of the projector's features, `[B, N, O]` or `[N, O]`."""
        return self.layers(self.inputs(features, op))

    def layers(self, x: Tensor) -> Tensor:
        """P behind the norm, of what `inputs` returns."""
        y = nn.functional.linear(x.to(self.w1.dtype), self.w1, self.b1)
        if self.w2 is None:
            return y
        return nn.functional.linear(ACTIVATIONS[self.activation].value(y), self.w2, self.b2)


def read_projector(projector: nn.Module | Projector, op: str = "read_projector") -> Projector:
    """Read a projector's layers out of its module; imports no model library.

    Args:
        projector: the module; a `Projector` is checked and returned as it is.
        op: who asks, for the text of errors.

    Returns:
        The projector; its tensors are the module's own, detached.

    Raises:
        TypeError: it is not a module, or its weights are no float tensors (quantised layers).
        ValueError: it is built differently, its activation is unknown, its weights do not fit, are
            not finite or on the meta device, or it computes something else than its parts say.
    """
    if isinstance(projector, Projector):
        _check(op, projector)
        return projector
    if not isinstance(projector, nn.Module):
        raise TypeError(f"{op}: projector must be a torch.nn.Module, got {type(projector)!r:.60}")
    parts = list(_leaves(projector))
    norm_width = _norm_width(parts[0])
    last = parts[0]
    if len(parts) == 2 and isinstance(last, nn.Linear):  # Gemma 4 registers its norm behind it
        parts.reverse()
        norm_width = last.in_features
    norm = parts.pop(0) if norm_width else None
    linear = [isinstance(part, nn.Linear) for part in parts]
    if linear not in ([True], [True, False, True]) or _has_own_parameters(projector):
        got = " of ".join([type(projector).__name__, ", ".join(_names(projector)) or "no parts"])
        raise ValueError(f"{op}: projector must be {_FAMILY}, got {got}")
    first = parts[0]
    found = Projector(
        w1=_weight(op, first, "weight"),
        b1=None if first.bias is None else _weight(op, first, "bias"),
        norm=norm,
        norm_width=norm_width,
    )
    if len(parts) == 3:
        second = parts[2]
        found = replace(
            found,
            w2=_weight(op, second, "weight"),
            b2=None if second.bias is None else _weight(op, second, "bias"),
            activation=_activation(op, parts[1]),
        )
    _compare(op, projector, found)
    return found


def _check(op: str, made: Projector) -> None:
    """What the ops check as well; but not every score calls one."""
    if made.w2 is None:
        _rules.linear(op, made.w1, made.b1)
        return
    _rules.projector(op, made.w1, made.b1, made.w2, made.activation)
    if made.b2 is not None:
        _rules.second_bias(op, made.b2, made.w2)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    # Not children(): a layer that is used twice is two parts.
    children = [child for child in module._modules.values() if child is not None]
    if not children:
        yield module
    for child in children:
        yield from _leaves(child)


def _names(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in _leaves(module) if part is not module]


def _has_own_parameters(module: nn.Module) -> bool:
    """Whether a module that has parts has parameters beside them."""
    inner = [m for m in module.modules() if any(True for _ in m.children())]
    return any(True for m in inner for _ in m.parameters(recurse=False))


def _norm_width(module: nn.Module) -> int:
    """How many channels a norm works on; 0 if it is none."""
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) and weight.ndim == 1 else 0


def _weight(op: str, layer: nn.Module, name: str) -> Tensor:
    x = getattr(layer, name)
    label = f"projector's {name}"
    _tensors.tokens(op, label, x)
    if x.is_meta:
        raise ValueError(f"{op}: {label} must be on a device that holds values, got a meta tensor")
    _rules.finite(op, label, x)
    detached: Tensor = x.detach()
    return detached


def _activation(op: str, module: nn.Module) -> str:
    """The name of the activation that computes what `module` does."""
    near = torch.linspace(-6.0, 6.0, 97, dtype=torch.float64, device="cpu")
    far = 2.0 ** torch.arange(3.0, 17.0, dtype=torch.float64, device="cpu")  # beyond any clipping
    x = torch.cat((near, far, -far))
    try:
        with torch.no_grad():
            y = module(x)
    except Exception:  # whatever it is, it is none of ours
        y = None
    if isinstance(y, Tensor) and y.shape == x.shape:
        for name, activation in ACTIVATIONS.items():
            # In float32 all of these are exact at powers of 2 beyond any clipping.
            if float((y - activation.value(x)).abs().max()) < 1e-5:
                return name
    known = ", ".join(ACTIVATIONS)
    raise ValueError(
        f"{op}: projector must have one of the activations {known}, got {type(module).__name__}"
    )


def _compare(op: str, module: nn.Module, found: Projector) -> None:
    """The module must compute what was read from it, on four random tokens."""
    D = found.w1.shape[1]
    width = found.norm_width or D
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn((4 * max(1, D // width), width), generator=generator, device="cpu")
    x = x.to(found.w1)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        try:
            right, read = module(x), found.outputs(x, op)
        except Exception as error:
            kind = type(module).__name__
            raise ValueError(
                f"{op}: projector must accept tokens [N, {width}], got {kind}: {error}"
            ) from error
    scale = 1e-3 if x.dtype == torch.float32 else 5e-2
    if (
        not isinstance(right, Tensor)
        or right.shape != read.shape
        or not bool((right - read).abs().max() <= scale * right.abs().max())
    ):
        kind = type(module).__name__
        raise ValueError(
            f"{op}: projector must compute {_FAMILY}, got {kind}, which computes something else"
        )
