"""Dataclasses as command-line flags, and YAML that cannot run code."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_text
from common.schema import typed


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line: what came, what is allowed, what to type next.

    everyday: names of the flags that --help shows; the others are left to --help-all. Empty shows all.
    """

    everyday: Collection[str] = ()

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's; numbers are read as those of `add_flags` are."""
        if options.get("type") in (int, float):
            options["type"] = _reader(options["type"])
        return super().add_argument(*names, **options)

    def show_first(self, names: Collection[str]) -> None:
        """Leaves --help the flags of these names, and adds --help-all."""
        self.everyday = {*names, "help", "help_all"}
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="every flag, by heading")

    def error(self, message: str) -> typing.NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flags = [o for action in self._actions for o in action.option_strings]
            near = difflib.get_close_matches(unknown.split()[0].split("=")[0], flags, 1)
            message += f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{message}; `{self.prog} {'--help-all' if self.everyday else '--help'}` lists every flag.")

    def format_help(self) -> str:
        texts = {action: action.help for action in self._actions}
        for action in self._actions:
            if self.everyday and action.option_strings and action.dest not in self.everyday:
                action.help = argparse.SUPPRESS
        if self.usage is None and len(self._actions) > MANY:  # every flag once is enough
            words = [str(action.metavar or action.dest) for action in self._actions if not action.option_strings]
            self.usage = " ".join(["%(prog)s", *words, "[flags]"])
        try:
            return super().format_help()
        finally:
            for action, text in texts.items():
                action.help = text


class _HelpAll(argparse.Action):
    """Prints every flag and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        assert isinstance(parser, Parser)  # no other has this action
        parser.everyday = ()
        parser.print_help()
        parser.exit()


MANY = 20
MAX_NODES, MAX_DEPTH = 20_000, 40  # of a YAML file


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Paragraphs of the description as they are written; defaults where there is one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = [block.strip("\n") for block in text.split("\n\n")]
        fits = [all(len(line) <= width for line in block.splitlines()) for block in blocks]
        filled = [
            b if fine else super(_Help, self)._fill_text(b, width, indent) for b, fine in zip(blocks, fits, strict=True)
        ]
        return "\n\n".join(filled)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", argparse.SUPPRESS):
            return action.help
        if isinstance(action.default, bool):
            return f"{action.help} (default: {'on' if action.default else 'off'})"
        return super()._get_help_string(action)


def peek(argv: Sequence[str], *names: str) -> argparse.Namespace:
    """The texts of a few flags ("--data"), "" where not given, before all flags and their defaults are known."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, default="")
    return parser.parse_known_args(list(argv))[0]


def help_formatter(prog: str) -> argparse.HelpFormatter:
    """Help with defaults, wide enough to read."""
    return _Help(prog, max_help_position=34, width=110)


def flag(name: str) -> str:
    """'lora_rank' -> '--lora-rank'."""
    return "--" + name.replace("_", "-")


def add_flags(
    parser: argparse.ArgumentParser, config: type, title: str = "", given_only: bool = False, **defaults: Any
) -> None:
    """One flag per field of the dataclass `config`, with its help, choices and default.

    Args:
        title: heading in --help; the first line of the class docstring when empty.
        given_only: leave a flag that is not given out of the parsed values, in the place of its default.
        defaults: values that replace the fields' own (a domain's constants).

    A flag that exists already is left as it is, so that two configs may share a field.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    group = parser.add_argument_group((title or (config.__doc__ or config.__name__).splitlines()[0]).rstrip("."))
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        if flag(item.name) in known or item.metadata.get("flag") is False:
            continue
        kind = _plain(hints[item.name])
        default = argparse.SUPPRESS if given_only else defaults.get(item.name, _default(item))
        text = item.metadata.get("help", "").replace("%", "%%")
        if kind is bool:
            group.add_argument(flag(item.name), default=default, action=argparse.BooleanOptionalAction, help=text)
            continue
        group.add_argument(
            flag(item.name), type=_reader(kind), default=default, help=text or " ",
            choices=item.metadata.get("choices"), metavar=None if item.metadata.get("choices") else kind.__name__.upper(),
        )  # fmt: skip


def from_values(config: type, values: Mapping[str, Any]) -> Any:
    """The dataclass filled from values by flag name, defaults for the others; its own checks run.

    Raises:
        UserError: a value of another type (a run folder's record may hold anything).
    """
    hints = typing.get_type_hints(config)
    fields = {f.name: f for f in dataclasses.fields(config) if f.name in values}
    given = {name: values[name] for name in fields}
    for name, value in given.items():
        if value is not None or fields[name].default is not None:
            typed(value, hints[name], f"`{flag(name)}` {value!r}")
    return config(**given)


def _plain(hint: Any) -> type:
    """`int` for `int | None` too."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            if not text.isascii() or "_" in text:  # Python would read digits of other scripts, and 1_0 as ten
                raise ValueError
            return kind(text)
        except ValueError:
            # argparse would hide the text of any other exception
            raise argparse.ArgumentTypeError(
                f"takes {'a whole number' if kind is int else 'a number'}, got {text!r}"
            ) from None

    return _text if kind is str else read


def _text(value: str) -> str:
    """A text as it is. Raises ArgumentTypeError for a NUL, which a file of defaults may hold and no path can."""
    if "\0" in value:
        raise argparse.ArgumentTypeError(f"takes a text without NUL characters, got {value[:80]!r}")
    return value


class Loader(yaml.SafeLoader):
    """YAML's safe loader with a bound on what aliases (`*name`) may unfold to; no key stands twice in a table."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        return None if node is None else self.construct_document(_bounded(node, [MAX_NODES], MAX_DEPTH))


def _bounded(node: yaml.Node, left: list[int], depth: int) -> yaml.Node:
    """`node`, of whose tree, aliases followed, at most `left[0]` nodes lie within each other `depth` deep."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise yaml.YAMLError("its aliases or its nesting make it too large")
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in keys.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0][:80]!r} stands in it twice")
    for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
        for child in inner if isinstance(inner, tuple) else (inner,):
            _bounded(child, left, depth - 1)
    return node


def read_yaml(path: str | Path, loader: type[Loader] = Loader) -> dict[str, Any]:
    """The mapping in a YAML file, read safely.

    Args:
        loader: the tags it knows are read; it must not run code either.

    Raises:
        UserError: missing, too large, not YAML, not a mapping, or holding a tag that would run code.
    """
    text = read_text(Path(path))
    try:
        data = yaml.load(text, loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except yaml.constructor.ConstructorError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem}; a config holds data only, it cannot run code.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold `name: value` lines.")
    return data


def apply_yaml(parser: argparse.ArgumentParser, path: str | Path, skip: Collection[str] = ()) -> None:
    """Makes the values of a YAML file the defaults of the flags of the same name; flags given still win.

    skip: names in the file that may be missing here (flags of another method).
    """
    apply_values(parser, read_yaml(path), f"{path}: ", skip)


def apply_values(
    parser: argparse.ArgumentParser, values: Mapping[str, Any], where: str, skip: Collection[str] = ()
) -> None:
    """Makes values the defaults of the flags of the same name, checked as the flags are.

    where: put before the name in an error.

    Raises:
        UserError: unknown name (says which is near it), or a value that the flag does not take.
    """
    dests = {action.dest: action for action in parser._actions}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in dests and name in skip:
            continue
        if name not in dests:
            near = difflib.get_close_matches(name, dests, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; `{parser.prog} --help-all` lists every flag."
            raise UserError(f"{where}unknown setting {key!r}{hint}")
        if value is not None:  # `key:` with nothing behind it leaves the default
            parser.set_defaults(**{name: _checked(dests[name], value, f"{where}{key}")})


def _checked(action: argparse.Action, value: Any, what: str) -> Any:
    """A YAML value as the flag of that name would give it."""
    if isinstance(value, list | tuple):
        if action.nargs:  # a flag of several values, given again and again
            return list(value)
        if action.type is not _text:
            raise UserError(f"{what} takes one value, got {value!r}.")
        value = ",".join(map(str, value))
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UserError(f"{what} is true or false, got {value!r}.")
        return value
    if isinstance(value, bool | dict):
        raise UserError(f"{what} takes a value, got {value!r}; put quotes around a text.")
    if action.choices and value not in action.choices:
        raise UserError(f"{what} must be one of {', '.join(map(str, action.choices))}, got {value!r}.")
    try:
        return action.type(str(value)) if callable(action.type) else value
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{what} {error}.") from None
