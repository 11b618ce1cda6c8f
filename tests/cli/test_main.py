import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from coterie import cli
from coterie.cli import commands, other_names
from coterie.cli.commands import COMMANDS, CommandEntry, build
from coterie.errors import StoreNotFoundError, UsageError

NAMES = [entry.name for entry in COMMANDS]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `doctor` a command that raises."""

    def install(error: BaseException) -> None:
        def command() -> None:
            """Fails."""
            raise error

        module = type(sys)("failing_command")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "failing_command", module)
        entry = CommandEntry("fail", "failing_command", "Fails.")
        monkeypatch.setattr(commands, "COMMANDS", (*COMMANDS, entry))

    return install


def test_help_lists_every_command_with_its_summary(coterie) -> None:
    outcome = coterie("--help")
    assert outcome.code == 0
    for entry in COMMANDS:
        assert entry.name in outcome.out
        assert entry.summary in outcome.out


def test_no_arguments_show_help_and_fail(coterie) -> None:
    outcome = coterie()
    assert outcome.code == 2
    assert "Usage" in outcome.out + outcome.err


def test_version(coterie) -> None:
    outcome = coterie("--version")
    assert (outcome.code, outcome.out) == (0, f"coterie {version('coterie')}\n")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_and_a_help_text_on_every_parameter(coterie, name: str) -> None:
    outcome = coterie(name, "--help")
    assert outcome.code == 0
    assert f"coterie {name}" in outcome.out
    pending = [build(next(entry for entry in COMMANDS if entry.name == name))]
    while pending:
        command = pending.pop()
        assert command.help, command.name
        assert [param.name for param in command.params if not param.help] == [], command.name
        pending.extend(getattr(command, "commands", {}).values())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_modules_agree(name: str) -> None:
    entry = next(entry for entry in COMMANDS if entry.name == name)
    assert entry.module == f"coterie.cli.{name.replace('-', '_')}"
    assert entry.summary.endswith(".")


def test_an_unknown_command_suggests_the_nearest(coterie) -> None:
    outcome = coterie("doctr")
    assert outcome.code == 2
    assert "Did you mean 'doctor'?" in outcome.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("run", "coterie generate MODEL PROMPT"),
        ("pull", "coterie extract CHECKPOINT STORE"),
        ("ls", "coterie stores"),
        ("list", "coterie stores"),
        ("ps", "coterie serve MODEL"),
        ("rm", "coterie stores remove NAME"),
        ("show", "coterie inspect MODEL"),
        ("server", "coterie serve MODEL"),
        ("version", "coterie --version"),
        ("help", "coterie --help"),
        ("convert", "coterie quantize MODEL STORE"),
        ("zzz", "coterie --help"),
    ],
)
def test_commands_of_other_programs_are_told_what_does_the_same(coterie, name: str, hint: str) -> None:
    outcome = coterie(name, "some", "--thing")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"There is no command '{name}'." in outcome.err
    assert hint in outcome.err


def test_hints_name_commands_that_exist_and_hide_none() -> None:
    assert not set(other_names._HINTS) & set(NAMES)
    named = {word for hint in other_names._HINTS.values() for word in re.findall(r"`coterie ([a-z]+)", hint)}
    assert named <= set(NAMES)


def test_an_unknown_option_suggests_the_nearest(coterie) -> None:
    outcome = coterie("doctor", "--quik")
    assert outcome.code == 2
    assert "--quick" in outcome.err


def test_an_error_is_one_message_and_code_1(coterie, failing) -> None:
    failing(StoreNotFoundError("There is no store at [x].", advice="Extract one."))
    outcome = coterie("fail")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err == "Error: There is no store at [x]. Extract one.\n"


def test_no_permission_is_a_message_with_the_path(coterie, failing) -> None:
    failing(PermissionError(13, "Permission denied", "/some/where"))
    outcome = coterie("fail")
    assert outcome.code == 1
    assert "/some/where: Permission denied" in outcome.err
    assert "Traceback" not in outcome.err


def test_wrong_usage_is_code_2(coterie, failing) -> None:
    failing(UsageError("No such size."))
    assert coterie("fail").code == 2


def test_debug_shows_the_traceback_too(coterie, failing) -> None:
    failing(StoreNotFoundError("There is no store."))
    outcome = coterie("--debug", "fail")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.endswith("Error: There is no store.\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("oops"), "Unexpected error: ZeroDivisionError: oops. This is a bug in Coterie"),
        (RecursionError(), "Unexpected error: RecursionError. This is a bug in Coterie"),
        (BaseException("a panic"), "Unexpected error: BaseException: a panic. This is a bug in Coterie"),
        (OSError(5, "Input/output error", "/some/where"), "/some/where: Input/output error."),
        (MemoryError(), "There is not enough memory."),
    ],
)
def test_what_nobody_expected_is_one_line(coterie, failing, error: BaseException, said: str) -> None:
    failing(error)
    outcome = coterie("fail")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"Error: {said}")
    assert outcome.err.count("\n") == 1


def test_a_defect_shows_its_traceback_when_asked(coterie, failing, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ZeroDivisionError("oops"))
    assert "Traceback (most recent call last)" in coterie("--debug", "fail").err
    monkeypatch.setenv("COTERIE_DEBUG", "1")
    assert "Traceback (most recent call last)" in coterie("fail").err


def test_ctrl_c_is_code_130(coterie, failing) -> None:
    failing(KeyboardInterrupt())
    outcome = coterie("fail")
    assert (outcome.code, outcome.err) == (130, "Interrupted\n")


def test_a_reader_that_left_is_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "coterie", "--help"], stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == cli.EXIT_ERROR
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--quick", "--json"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "coterie", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == cli.EXIT_ERROR
    assert done.stderr == "Error: Standard output cannot be written: No space left on device.\n"


def test_a_closed_stdout_is_one_line() -> None:
    command = f"{shlex.quote(sys.executable)} -m coterie --version >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == cli.EXIT_ERROR
    assert done.stderr == "Error: Standard output cannot be written: it is closed.\n"


def test_a_closed_stderr_changes_nothing() -> None:
    command = f"{shlex.quote(sys.executable)} -m coterie --version 2>&-"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"coterie {version('coterie')}\n")


def test_help_imports_no_command_and_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from coterie.cli import main\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "from coterie.cli.commands import COMMANDS\n"
        "heavy |= {entry.module for entry in COMMANDS} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_asking_for_help_of_a_command_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "from coterie.cli import main\n"
        "from coterie.cli.commands import COMMANDS\n"
        "codes = [main([entry.name, '--help']) for entry in COMMANDS]\n"
        "print(sum(codes), sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
