"""Counts the operations of a traced function, equation by equation, with loops as often as they run."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def traced_flops(function, *arguments) -> int:
    """Operations of all products and convolutions that the outputs of `function` depend on."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total, needed = 0, {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if not any(id(var) in needed for var in equation.outvars):
            continue
        needed |= {id(var) for var in equation.invars}
        total += _operations(equation)
    return total


def _operations(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if params.get("branches_platforms"):  # the same product for each platform; the last is for all others
        return _count(params["branches"][-1].jaxpr)
    inner = sum(_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value))
    assert not (inner and name in ("while", "cond")), f"no telling how often '{name}' runs"
    return inner * params.get("length", 1) if name == "scan" else inner


def _jaxprs(value) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [jaxpr for entry in value for jaxpr in _jaxprs(entry)] if isinstance(value, tuple | list) else []
