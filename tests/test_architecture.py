"""What the layout promises, checked: layers and cycles are import-linter's job (`make check`), the rest is here."""

import ast
import dataclasses
import functools
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import coterie
from coterie.spec.opening import Opening

SOURCE = Path(coterie.__file__).parent
PROJECT = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())
PAGE = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text()
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages([str(SOURCE)], "coterie.")
    if info.name not in ("coterie.__main__", "coterie.native.libcoterie")  # not a module, whatever its name says
)
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "base"}
NAMING = {"component", "source", "profile", "revision", "offline"}
"""Options that say which model and profile are meant: whatever reads one has them."""
TORCH_FREE = {"errors", "spec", "records", "plan", "profiles", "eviction"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def contract(name_start: str) -> dict[str, object]:
    return next(c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["name"].startswith(name_start))


def test_importing_coterie_loads_no_third_party_package() -> None:
    script = (
        "import sys; before = set(sys.modules); import coterie\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new))"
    )
    assert run_python(script) == "['coterie']"


def test_importing_coterie_changes_nothing_in_the_process() -> None:
    script = (
        "import os, sys, warnings, logging, threading, signal\n"
        "def state():\n"
        "    return (dict(os.environ), list(sys.path), list(warnings.filters), logging.getLogger().level,\n"
        "            list(logging.getLogger().handlers), threading.active_count(), sys.excepthook,\n"
        "            signal.getsignal(signal.SIGINT), os.getcwd())\n"
        "before = state()\n"
        "import coterie\n"
        "print(before == state())"
    )
    assert run_python(script) == "True"


def test_cli_starts_without_torch() -> None:
    script = "import sys, coterie.cli; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert run_python(script) == "[]"


def test_opening_a_model_without_a_profile_loads_no_database() -> None:
    """A database's libraries take 20 MB of the budget."""
    script = (
        "import sys, coterie\n"
        "coterie.load('bundled').coterie.close()\n"
        "print(sorted({'sqlalchemy', 'alembic', 'scipy.stats', 'matplotlib', 'coterie.profiles'} & set(sys.modules)))"
    )
    assert run_python(script) == "[]"


def imported_at_once(name: str, is_package: bool, tree: ast.AST) -> set[str]:
    """The modules of coterie that must have been executed before a module can be, but for packages that it is in."""
    found: set[str] = set()
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if is_package else name.split(".")[:-1]
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            inside = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
            # `from . import x` needs the submodule; anything else needs what the package itself has executed.
            found |= inside if len(inside) == len(node.names) else inside | {base}
        pending.extend(ast.iter_child_nodes(node))
    found = {module for module in found if module.partition(".")[0] == "coterie"}
    around = {module.rpartition(".")[0] for module in found} - {""}
    return found | {package for package in around if not f"{name}.".startswith(f"{package}.")}


def test_every_module_can_be_imported_first() -> None:
    # An import cycle that happens to work in one order breaks in another; without one, every order works.
    graph = {}
    for path in FILES:
        parts = ("coterie", *path.relative_to(SOURCE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = imported_at_once(name, parts[-1] == "__init__", parsed(path))
    assert set(MODULES) <= set(graph)
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the modules of a cycle


def test_a_cycle_of_imports_is_seen() -> None:
    def needs(name: str, text: str, is_package: bool = False) -> set[str]:
        return imported_at_once(name, is_package, ast.parse(text))

    assert needs("coterie.store.reader", "from coterie.store import Store") == {"coterie.store"}
    assert needs("coterie.store.reader", "from . import disk\nimport torch") == {"coterie.store.disk"}
    assert needs("coterie.store", "from .reader import Store", is_package=True) == {"coterie.store.reader"}
    assert needs("coterie.cli.chat", "class A:\n    import coterie.plan.cpu") == {"coterie.plan.cpu", "coterie.plan"}
    lazy = "def f():\n    import coterie.plan\nif TYPE_CHECKING:\n    import coterie.spec"
    assert needs("coterie.cli.chat", lazy) == set()
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_public_names_are_complete_and_sorted() -> None:
    public = coterie.__all__
    assert public == sorted(set(public))
    assert set(public) == {"__version__"} | set(coterie._HOMES) | coterie._SUBMODULES
    for name in public:
        assert getattr(coterie, name) is not None, name
    assert set(public) <= set(dir(coterie))


def test_public_names_come_from_where_the_table_says() -> None:
    for name, home in coterie._HOMES.items():
        assert getattr(coterie, name) is getattr(importlib.import_module(home), name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    seen = set()
    for node in guarded.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            seen.add(node.target.id)
    assert seen == set(coterie.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        coterie.lod  # noqa: B018


def test_no_module_has_a_vague_name() -> None:
    assert [relative(path) for path in FILES if set(path.relative_to(SOURCE).with_suffix("").parts) & VAGUE] == []


def test_only_the_command_line_prints() -> None:
    offenders = []
    for path in FILES:
        # Writes into descriptors that a user names as an output, after what was printed before.
        if path.is_relative_to(SOURCE / "cli") or path == SOURCE / "files" / "replacing.py":
            continue
        for node in ast.walk(parsed(path)):
            named = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}
            )
            written = isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"}
            if named or (written and isinstance(node.value, ast.Name) and node.value.id == "sys"):
                offenders.append(f"{relative(path)}:{node.lineno}")
    assert offenders == []


def test_errors_raised_on_purpose_are_ours() -> None:
    # A bare Exception or RuntimeError cannot be told apart by a caller.
    offenders = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Raise) and node.exc is not None:
                target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if isinstance(target, ast.Name) and target.id in {"Exception", "BaseException", "RuntimeError"}:
                    offenders.append(f"{relative(path)}:{node.lineno}")
    assert offenders == []


def test_every_error_stands_in_the_drawn_tree_under_its_parent() -> None:
    from coterie import errors

    document = errors.__doc__ or ""
    parents: dict[int, str] = {}
    drawn: dict[str, str] = {}
    for line in document.splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if name.endswith("Error") and hasattr(errors, name) and line.startswith("    "):
            depth = (len(line) - len(line.lstrip(" │├└─"))) // 4
            parents[depth] = name
            if depth > 1:
                drawn[name] = parents[depth - 1]
    actual = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CoterieError) and value is not errors.CoterieError
    }
    assert drawn == actual


def spelled(tree: ast.AST) -> set[str]:
    """Functions, classes, calls and dicts that spell four options or more that only opening has."""
    options = {field.name for field in dataclasses.fields(Opening)} - NAMING
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name, names = node.name, {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
        elif isinstance(node, ast.ClassDef):
            name, names = node.name, {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
        elif isinstance(node, ast.Call):
            name, names = f"{ast.unparse(node.func)}()", {str(keyword.arg) for keyword in node.keywords}
        elif isinstance(node, ast.Dict):
            name, names = "{}", {key.value for key in node.keys if isinstance(key, ast.Constant)}
        else:
            continue
        if len(options & names) >= 4:
            found.add(name)
    return found


def test_options_of_opening_are_spelled_once() -> None:
    """In the dataclass, in the group of the command line, and in the signatures that users call."""
    found = {relative(path): spelled(parsed(path)) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {
        "spec/opening.py": {"Opening"},
        "cli/options.py": {"{}"},
        "engine/loader.py": {"load", "Opening()"},
        "evaluate/running.py": {"evaluate", "Opening()"},
    }


def test_options_of_opening_are_the_same_everywhere() -> None:
    from coterie.cli.options import OPENING_OPTIONS

    options = {field.name: field.default for field in dataclasses.fields(Opening)}
    assert list(OPENING_OPTIONS) == list(options)
    parameters = inspect.signature(coterie.load).parameters
    assert {name: one.default for name, one in parameters.items() if name in options} == options
    own = inspect.signature(coterie.evaluate.evaluate).parameters
    assert {name: one.default for name, one in own.items() if name in options and one.default != options[name]} == {}


def test_torch_free_packages_are_in_the_contract_that_says_so() -> None:
    present = {name for name in TORCH_FREE if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}
    listed = {name.removeprefix("coterie.") for name in contract("No torch in")["source_modules"]}
    assert listed == present


def test_the_table_of_the_architecture_page_is_the_contract() -> None:
    rows: list[list[str]] = []
    for number, packages in re.findall(r"^\| *(\d*) *\| (`[\w`, ]+`) \|", PAGE, re.MULTILINE):
        if number:
            rows.append([])
            assert int(number) == len(rows)
        rows[-1].extend(packages.strip("`").split("`, `"))
    layers = [{name.strip(" ()") for name in row.split("|")} for row in contract("Layers of")["layers"]]
    assert list(map(set, rows)) == [layer for layer in layers if layer != {"__main__"}]


def toured(text: str) -> tuple[set[str], list[str]]:
    """The packages that a tour of the files comes to, and what it names that is not there."""
    packages: set[str] = set()
    absent, folder = [], SOURCE
    for place in re.findall(r"`([\w./]+(?:/|\.py|\.c|\.h))`", text):
        path = place.removeprefix("src/coterie/")
        if path != place:
            folder = SOURCE / path
            packages.add(path.rstrip("/").removesuffix(".py"))
            found = folder.exists()
        else:
            found = (SOURCE / path).exists() if "/" in path.rstrip("/") else any(folder.rglob(path.rstrip("/")))
        if not found:
            absent.append(place)
    return packages, absent


def test_what_the_architecture_page_says_to_read_first_is_there_and_little() -> None:
    start = PAGE[PAGE.index("## Where to start reading") : PAGE.index("`tests/` mirrors `src/`")]
    places, absent = toured(start)
    assert absent == []
    assert 5 <= len(places) <= 8


def test_a_tour_of_what_is_not_there_is_seen() -> None:
    assert toured("`src/coterie/checkpoint/`: `naming.py`, `hub/`, `native/openmp.py`, `coterie.load`") == (
        {"checkpoint"},
        ["naming.py"],
    )
    assert toured("`src/coterie/nowhere/`: `native/gone.py`")[1] == ["src/coterie/nowhere/", "native/gone.py"]


def forwards_touched(tree: ast.AST) -> list[int]:
    """Lines where something is given, loses, or is asked for a forward of its own, however that is written."""
    found = []
    for node in ast.walk(tree):
        named = isinstance(node, ast.Constant) and node.value == "forward"
        # `del x.forward` and `x.forward = y`; calling or asking a class for its forward is anybody's.
        written = isinstance(node, ast.Attribute) and node.attr == "forward" and not isinstance(node.ctx, ast.Load)
        keyword = isinstance(node, ast.keyword) and node.arg == "forward"
        if named or written or keyword:
            found.append(node.lineno)
    return found


def test_forwards_of_instances_are_written_and_read_in_one_module() -> None:
    # The class's method is run under its name; a contract tries what a tiny model of its own does with one.
    named = {"routing/preview.py": 1, "routing/families.py": 1, "hf/contracts.py": 1}
    offenders = {}
    for path in FILES:
        lines = forwards_touched(parsed(path))
        if len(lines) > named.get(relative(path), 0) and path != SOURCE / "passes" / "forwards.py":
            offenders[relative(path)] = lines
    assert offenders == {}
    assert forwards_touched(parsed(SOURCE / "passes" / "forwards.py"))


@pytest.mark.parametrize(
    "text",
    [
        'module.__dict__["forward"] = f', 'vars(module)["forward"] = f', 'name = "forward"; space[name] = f',
        "module.forward = f", "del module.forward", "a.forward, b = f, g", 'setattr(module, "forward", f)',
        "module.__dict__.update(forward=f)", 'module.__dict__.pop("forward")', '"forward" in module.__dict__',
    ],
)  # fmt: skip
def test_a_forward_that_is_touched_is_seen(text: str) -> None:
    assert forwards_touched(ast.parse(text))
    assert not forwards_touched(ast.parse("module.forward(x); type(module).forward\ndef forward(self): ..."))


def decodes(tree: ast.AST) -> list[int]:
    """Lines where a model is asked to generate, or something decodes on its own."""
    calls = {"generate", "generate_batch", "_prefill", "prepare_inputs_for_generation",
             "_update_model_kwargs_for_generation"}  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        asked = isinstance(node.func, ast.Attribute) and node.func.attr in calls
        # A pass that is to keep what it computes, or goes on with what one has kept.
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        keeps = given.get("use_cache") == "True" or "past_key_values" in given
        if asked or keeps:
            found.append(node.lineno)
    return found


def test_nobody_decodes_but_the_loop() -> None:
    others = {
        "generation/completion.py": "a search over several beams is one call",
        "hf/talker.py": "the whole omni model's, whose thinker has written and whose talker is only prepared by it",
        "generation/vocoder.py": "a speech codec has no tokens to choose: its frames are there",
        "hf/code_predictor.py": "the codes of one frame of speech, of which the loop's token is the first",
        "generation/contracts.py": "what the loop and a streamed model are compared with",
        "integration/contracts.py": "what passes of transformers' own loop look like",
        "evaluate/exactness.py": "the stock model that a streamed one is compared with",
    }
    places = {relative(path) for path in FILES if decodes(parsed(path))}
    assert places == {"hf/generation_steps.py", *others}


@pytest.mark.parametrize(
    "text",
    [
        "model.generate(x)", "self._model.generate(**inputs)", "model(ids, past_key_values=kept)",
        "model(ids, use_cache=True)", "model._prefill(ids)",
    ],
)  # fmt: skip
def test_what_decodes_is_seen(text: str) -> None:
    assert decodes(ast.parse(text))
    assert not decodes(ast.parse("generate(model); generated(one); model(ids, use_cache=False); self._cache.lease(x)"))


def threads_told_apart(tree: ast.AST) -> list[int]:
    """Lines where something is kept by thread, or threads are told apart."""
    names = {"local", "get_ident", "current_thread", "get_native_id", "ContextVar"}
    found = []
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and node.attr in names
        imported = isinstance(node, ast.ImportFrom) and node.module in ("threading", "_thread", "contextvars")
        if named or (imported and names & {alias.name for alias in node.names}):
            found.append(node.lineno)
    return found


def test_the_current_pass_is_kept_in_one_place() -> None:
    running = {
        "passes",
        "integration",
        "kernels",
        "routing",
        "native",
        "hf",
        "engine",
        "generation",
        "bench",
        "evaluate",
        "survey",
    }
    # What else is by thread there is no pass's:
    others = {
        "passes/admission.py": "which threads compute, and what each generation has used",
        "engine/lending.py": "the main thread, to which interrupts come",
        "engine/parts.py": "which threads are not done with a part",
        "engine/store_growth.py": "which thread writes, and does not wait for itself",
        "hf/foreign.py": "whose remarks are left out",
        "hf/skeleton.py": "whose model is being built",
        "bench/breakdown.py": "which thread is timed",
    }
    places = {relative(path) for path in FILES if threads_told_apart(parsed(path))}
    assert {place for place in places if place.partition("/")[0] in running} == {"passes/current.py", *others}


@pytest.mark.parametrize(
    "text",
    [
        "class A(threading.local): ...", "from threading import local", "x[threading.get_ident()]",
        "import contextvars as c\nc.ContextVar('x')",
    ],
)  # fmt: skip
def test_what_is_kept_by_thread_is_seen(text: str) -> None:
    assert threads_told_apart(ast.parse(text))
    assert not threads_told_apart(ast.parse("self.local_dir; threading.Lock(); threading.Thread()"))
