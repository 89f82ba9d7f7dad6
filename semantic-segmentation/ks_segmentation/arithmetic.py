"""Computes the number lists that published YAML files write as Python expressions, without running Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from common.errors import UserError

MAX_TEXT = 500  # characters
MAX_VALUES = 10_000  # numbers made in one expression
MAX_SIZE = 1e12  # absolute value of any number

OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable] = {"int": int, "round": round, "range": range}


class _Evaluator:
    """Walks the syntax tree; everything that is not listed in it is refused."""

    def __init__(self, text: str) -> None:
        self.text, self.made = text, 0

    def fail(self, why: str) -> UserError:
        return UserError(
            f"expression {self.text[:80]!r} {why}; allowed are numbers, + - * // %, int, round, range and "
            "list comprehensions. Write the list out instead."
        )

    def number(self, value: object) -> int | float:
        self.made += 1
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail("uses something that is not a number as one")
        if self.made > MAX_VALUES or not abs(value) <= MAX_SIZE:
            raise self.fail("makes too many or too large numbers")
        return value

    def value(self, node: ast.AST, names: dict) -> object:
        if isinstance(node, ast.Constant):
            return self.number(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            operand = self.number(self.value(node.operand, names))
            return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return self.operation(node, names)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self.value(item, names) for item in node.elts]
        if isinstance(node, ast.ListComp):
            return self.comprehension(node, names)
        if isinstance(node, ast.Call):
            return self.call(node, names)
        raise self.fail("is refused")

    def operation(self, node: ast.BinOp, names: dict) -> int | float:
        left = self.number(self.value(node.left, names))
        right = self.number(self.value(node.right, names))
        try:
            return self.number(OPERATORS[type(node.op)](left, right))
        except ZeroDivisionError:
            raise self.fail("divides by zero") from None

    def call(self, node: ast.Call, names: dict) -> object:
        known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        if not known or node.keywords or not 1 <= len(node.args) <= 3:
            raise self.fail("calls something else")
        numbers = [self.number(self.value(item, names)) for item in node.args]
        try:
            made = FUNCTIONS[node.func.id](*numbers)
        except (TypeError, ValueError):
            raise self.fail("calls a function with arguments it does not take") from None
        if isinstance(made, range):
            if len(made) > MAX_VALUES:
                raise self.fail("makes too many or too large numbers")
            return made
        return self.number(made)

    def comprehension(self, node: ast.ListComp, names: dict) -> list:
        loop = node.generators[0]
        if len(node.generators) > 1 or loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            raise self.fail("has a comprehension with more than one plain loop")
        source = self.value(loop.iter, names)
        if not isinstance(source, (list, range)):
            raise self.fail("loops over a number")
        return [self.value(node.elt, {**names, loop.target.id: item}) for item in source]


def evaluate(text: str) -> list | int | float:
    """The numbers that `text` stands for: `[int(x * 0.1 * 640) for x in range(5, 21)]` -> [320, ..., 1280].

    Raises:
        UserError: `text` holds anything but arithmetic, or makes too much of it.
    """
    evaluator = _Evaluator(text)
    if len(text) > MAX_TEXT:
        raise evaluator.fail("is too long")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        result = evaluator.value(tree.body, {})
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise evaluator.fail("cannot be read") from None
    return list(result) if isinstance(result, range) else result
