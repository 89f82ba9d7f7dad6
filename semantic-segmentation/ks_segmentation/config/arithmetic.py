"""Computes the number lists that published YAML files write as Python expressions, without running Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from common.errors import UserError

MAX_TEXT = 500  # characters
MAX_STEPS = 10_000  # syntax nodes visited, each turn of a loop anew, and items of one range
MAX_SIZE = 1e12  # absolute value of any number; also bounds the digits that `round` is asked for
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
FUNCTIONS: dict[str, Callable] = {"int": int, "round": round, "range": range}


def evaluate(text: str) -> list | int | float:
    """The numbers that `text` stands for: `[int(x * 0.1 * 640) for x in range(5, 21)]` -> [320, ..., 1280].

    Raises:
        UserError: `text` holds anything but arithmetic, or makes too much of it.
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError
        made = _Evaluator().value(ast.parse(text.strip(), mode="eval").body, {})
        return list(made) if isinstance(made, range) else made
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise UserError(
            f"expression {text[:80]!r} is refused; allowed are numbers, + - * // %, int, round, range and list "
            f"comprehensions of at most {MAX_STEPS} steps. Write the list out instead."
        ) from None


class _Evaluator:
    """Walks the syntax tree; whatever is not listed in it raises an error."""

    steps = 0

    def value(self, node: ast.AST, names: dict[str, Any]) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError
        match node:
            case ast.Constant(value=value):
                return _number(value)
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=op, operand=operand):
                return self.computed(OPERATORS.get(type(op)), [operand], names)
            case ast.BinOp(left=left, op=op, right=right):
                return self.computed(OPERATORS.get(type(op)), [left, right], names)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.computed(FUNCTIONS.get(name), arguments, names)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.value(item, names) for item in items]
            case ast.ListComp(elt, [ast.comprehension(ast.Name(id=name), source, ifs=[], is_async=0)]):
                return [self.value(elt, {**names, name: item}) for item in self.value(source, names)]
        raise ValueError

    def computed(self, function: Callable | None, arguments: list[ast.expr], names: dict[str, Any]) -> Any:
        numbers = [_number(self.value(argument, names)) for argument in arguments]
        if function is None or (function is round and len(numbers) > 1 and abs(numbers[1]) > 20):
            raise ValueError  # round(1, -10**12) would count that many digits
        made = function(*numbers)
        if isinstance(made, range) and len(made) <= MAX_STEPS:
            return made
        return _number(made)


def _number(value: Any) -> int | float:
    if type(value) not in (int, float) or not abs(value) <= MAX_SIZE:
        raise ValueError
    return value
