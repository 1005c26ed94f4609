"""Where a layer's output goes: into the sum at the end of its residual branch, or through the batch norm behind it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compressor.planning.walk import NORMALISING, Program, aten, operator

LAYOUTS = {
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints, aten.unflatten.int, aten.contiguous.default,
    aten.clone.default, aten.dropout.default, aten.alias.default,
}  # fmt: skip
SUMS = (aten.add.Tensor,)
SCALINGS = (aten.mul.Tensor, aten.add.Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The path from a layer to the sum that its output goes into: operators that move values or scale them."""

    chain: tuple[fx.Node, ...]
    total: int  # the sum's index
    other: fx.Node  # the other summand


def residual_sum(program: Program, node: fx.Node) -> Branch | None:
    """Return the residual sum that an operator's output goes into, after moves and scalings only; `None` if there is
    none.
    """
    chain: list[fx.Node] = []
    at = node
    while len(at.users) == 1:
        user = next(iter(at.users))
        kind = operator(user)
        others = [a for a in user.all_input_nodes if a is not at]
        norm = kind in NORMALISING and user.args[0] is at and user.args[5] is False
        scaled = kind in SCALINGS and bool(others) and all(o in program.constants for o in others)
        if kind in LAYOUTS or norm or scaled:
            chain.append(user)
            at = user
        elif kind in SUMS and len(others) == 1 and not user.kwargs and len(user.args) == 2:
            return Branch(chain=tuple(chain), total=program.index[user], other=others[0])
        else:
            break
    return None


def norm_behind(program: Program, node: fx.Node) -> str | None:
    """Return the running mean's name of the batch norm that is the only reader of the layer's output; else `None`."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if operator(user) not in NORMALISING or user.args[0] is not node or user.args[5] is not False:
        return None
    mean = user.args[3]
    return program.tensor_name(mean) if isinstance(mean, fx.Node) and len(mean.users) == 1 else None
