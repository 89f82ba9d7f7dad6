"""Flags from dataclasses, YAML defaults, one-line errors with exit code 2."""

import errno
from dataclasses import dataclass, field

import pytest

from common import cli, methods
from common.config import Parser, add_flags, apply_yaml, from_values, read_yaml
from common.errors import Interrupted, UserError
from common.record import write_bytes
from common.settings import settings_from, settings_parser
from common.train_config import TrainConfig


@dataclass
class Sample:
    """A sample."""

    rank: int = field(default=8, metadata={"help": "rank; 100 % sure"})
    lr: float = 1e-3
    name: str = "x"
    order: str = field(default="a", metadata={"choices": ["a", "b"]})
    fast: bool = False
    hidden: int = field(default=3, metadata={"flag": False})

    def __post_init__(self):
        if self.rank < 1:
            raise UserError("`--rank` must be at least 1.")


def parse(*argv, yaml=None, **defaults):
    parser = Parser(prog="x.py", allow_abbrev=False)
    add_flags(parser, Sample, **defaults)
    if yaml:
        apply_yaml(parser, yaml)
    return from_values(Sample, vars(parser.parse_args(list(argv))))


def test_fields_become_flags_and_come_back():
    assert parse() == Sample()
    given = parse("--rank", "4", "--lr", "2e-2", "--name", "-y z", "--order", "b", "--fast")
    assert given == Sample(4, 0.02, "-y z", "b", True) and not parse("--no-fast").fast
    assert parse(rank=2).rank == 2 and parse("--rank", "3", rank=2).rank == 3


def test_help_shows_text_default_and_choices(capsys):
    parser = Parser(prog="x.py")
    add_flags(parser, Sample)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "100 % sure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rank", "x"], "argument --rank: takes a whole number, got 'x'"),
        (["--rank", "2.5"], "a whole number, got '2.5'"),
        (["--lr", "fast"], "argument --lr: takes a number, got 'fast'"),
        (["--rank"], "argument --rank: expected one argument"),
        (["--order", "c"], "argument --order: invalid choice: 'c'"),
        (["--rnak", "3"], r"unrecognized arguments: --rnak 3 \(did you mean --rank\?\)"),
        (["--ran=3"], "did you mean --rank"),
        (["--rank", "0"], "`--rank` must be at least 1"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys):
    with pytest.raises(UserError, match=message) as found:
        parse(*argv)
    assert "\n" not in str(found.value) and capsys.readouterr().err == ""


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_yaml_gives_defaults_and_flags_win(tmp_path):
    path = write(tmp_path, "rank: 2\nlr: 1e-2\nname: [a, b]\nfast: true\norder:\n")
    assert parse(yaml=path) == Sample(2, 0.01, "a,b", "a", True)
    assert parse("--rank", "5", "--no-fast", yaml=path) == Sample(5, 0.01, "a,b", "a", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak: 2\n", "unknown setting 'rnak'; did you mean rank?"),
        ("zzz: 2\n", "unknown setting 'zzz'; `x.py --help-all` lists every flag"),
        ("rank: two\n", "rank takes a whole number, got 'two'"),
        ("order: c\n", "order must be one of a, b, got 'c'"),
        ("fast: 'no'\n", "fast is true or false, got 'no'"),
        ("name: {a: 1}\n", "name takes a value"),
        ("rank: !!python/object/apply:os.system ['true']\n", "it cannot run code"),
        ("rank: !!python/object/new:os.system [echo]\n", "it cannot run code"),
        ("just text", "must hold `name: value` lines"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line_with_the_file_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as found:
        parse(yaml=path)
    assert "\n" not in str(found.value) and str(path) in str(found.value)


def test_reading_yaml_runs_nothing(tmp_path):
    path = write(tmp_path, f"!!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()


# ---- the command line of a swap ------------------------------------------------------------------------------


def parsed(argv):
    """The settings of a swap of a domain whose own flags are those of `Sample`."""
    return settings_from([Sample], vars(settings_parser("swap.py", "", [Sample], argv).parse_args(argv)))


@pytest.mark.parametrize("method", methods.available())
def test_help_lists_the_flags_of_the_chosen_method(method, capsys):
    parser = settings_parser("swap.py", "", [Sample], ["--method", method])
    settings = parsed(["--method", method])
    assert settings.method is methods.load(method) and settings[Sample] == Sample()
    assert settings.method_config == methods.load(method).Config()
    assert f"--method {method}" in parser.format_help()


def test_the_method_may_come_from_yaml_and_loses_to_the_flag(tmp_path):
    path = write(tmp_path, "method: replay\nepochs: 2\n")
    argv = ["--config", str(path)]
    settings = parsed(argv)
    assert settings.method is methods.load("replay") and settings.train.epochs == 2
    for given in (["--method", "finetune"], ["--method=finetune"]):
        assert parsed(argv + given).method is methods.load("finetune")


def run(argv, capsys):
    """(exit code, stderr) of the flags part of an entry script."""

    code = cli.main(lambda args: parsed(args) and None, argv)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "nothing"], "`--method` must be one of"),
        (["--method"], "expected one argument"),
        (["--lora-rank", "0"], "`--lora-rank` must be at least 1, got 0"),
        (["--epochs", "0"], "`--epochs` must be at least 1, got 0"),
        (["--batch-size", "-1"], "`--batch-size` must be at least 1"),
        (["--lr", "0"], "`--lr` must be above 0"),
        (["--lr", "nan"], "`--lr` must be above 0"),
        (["--clip", "-1"], "`--clip` must not be negative"),
        (["--warmup", "1"], "`--warmup` is a share"),
        (["--bound", "0"], "`--bound` must be above 0"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--config", "/no/such/file"], "cannot read /no/such/file"),
    ],
)
def test_bad_commands_end_with_one_line_and_code_2(argv, message, capsys):
    code, err = run(argv, capsys)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_good_command_ends_with_code_0(capsys):
    assert run(["--epochs", "3"], capsys) == (0, "")


def ended(error, capsys):
    def body(args):
        raise error

    code = cli.main(body, [])
    return code, capsys.readouterr().err


def test_interrupts_end_with_130(capsys):
    assert ended(Interrupted("stopped after step 3"), capsys) == (130, "stopped after step 3\n")
    assert ended(KeyboardInterrupt(), capsys) == (130, "stopped.\n")


def test_a_full_disk_is_one_line(capsys):
    code, err = ended(OSError(errno.ENOSPC, "No space left on device", "/x/state.pt"), capsys)
    assert code == 2 and "/x/state.pt: No space left on device; free space" in err and err.count("\n") == 1
    assert ended(OSError(errno.ENOSPC, "No space left on device"), capsys)[0] == 2


def test_a_file_in_the_place_of_the_output_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code = cli.main(lambda argv: write_bytes(tmp_path / "file" / "config.json", b""), [])
    assert code == 2 and "file/config.json" in capsys.readouterr().err


def test_programming_mistakes_keep_their_traceback():
    for error in (ValueError("x"), AssertionError("x"), ConnectionResetError(errno.ECONNRESET, "reset")):
        with pytest.raises(type(error)):
            cli.main(lambda argv, error=error: (_ for _ in ()).throw(error), [])


def test_every_flag_has_a_help_text():
    parser = settings_parser("swap.py", "", [], [])
    assert not [a.dest for a in parser._actions if a.option_strings and not (a.help or "").strip()]


def test_a_stated_length_is_run_exactly_and_any_other_is_a_limit():
    assert TrainConfig().until == "auto" and TrainConfig().length("learn", 7) == 35
    assert (
        TrainConfig().length("learn", 7, settles=True) == 300 < TrainConfig().length("learn", 70, settles=True) == 350
    )
    assert TrainConfig(epochs=5).until == TrainConfig(steps=9).until == "steps"
    assert TrainConfig(steps=9, until="settled").until == "settled"
    forget = TrainConfig(forget_steps=9)
    assert forget.until == "auto" and forget.given("forget") == 9 and forget.given("learn") == 0
    assert (forget.length("forget", 7), forget.length("learn", 7)) == (9, 35)
