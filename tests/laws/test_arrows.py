"""The shape of the library, held as data: which way imports point, what is public, and rules a parser sees."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import limbeck

SOURCE = Path(limbeck.__file__).parent
TESTS = Path(__file__).parents[1]

# What each folder may import beside core; a new folder gets its arrows here.
ARROWS = {
    "core": "",
    "networks": "",
    "data": "",
    "engines": "",
    "report": "",
    "progress": "report",
    "derivatives": "networks",
    "training": "derivatives networks",
    "synthetic": "data training",
    "task": "data networks derivatives training",
    "select": "networks training",
    "experts": "task training derivatives networks",
    "objectives": "synthetic training derivatives networks select data",
    "methods": "objectives experts select synthetic training task networks data",
    "evaluation": "progress task training derivatives select synthetic networks data",
    "jobs": "engines methods evaluation experts select progress report synthetic task training derivatives networks "
    "data",
    "studies": "engines experts jobs evaluation report synthetic data",
    "laws": "jobs methods experts select synthetic task derivatives networks data",
    "interop": "experts evaluation synthetic task training networks data",
    "cli": "laws studies jobs engines interop methods evaluation experts progress report synthetic task training "
    "derivatives networks data",
    "__main__": "cli",
}
WITHOUT_TORCH = [
    "core.records",
    "core.evaluation_records",
    "core.study_records",
    "core.text",
    "report.page",
    "report.contact_sheet",
    "report.table",
    "report.inspection",
    "report.study",
    "cli.main",
    "cli.commands",
    "cli.methods",
    "cli.cache",
    "cli.screen",
    "cli.watch",
    "progress.screen",
    "progress.watch",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, inside functions too; what only a type checker sees is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            assert child.module is not None
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


def part_of(module: str) -> str:
    """limbeck.data.images -> data, limbeck -> __init__, torch.nn -> torch."""
    first, *parts = module.split(".")
    return first if first != "limbeck" else parts[0] if parts else "__init__"


MODULES = {name: {module for module in imports(tree) if module in TREES} - {name} for name, tree in TREES.items()}
PARTS: dict[str, set[str]] = {}
for _name, _tree in TREES.items():
    _imported = {part_of(module) for module in imports(_tree) if not module.startswith("limbeck") or module in TREES}
    PARTS.setdefault(part_of(_name), set()).update(_imported - {part_of(_name), "__init__"})


def test_the_parser_sees_imports_that_are_there() -> None:
    code = "import a.b\nfrom c import d\ndef f():\n    from e import g\nif TYPE_CHECKING:\n    import h\n"
    assert set(imports(ast.parse(code))) == {"a.b", "c", "c.d", "e", "e.g"}
    assert "limbeck.networks.flat" in MODULES["limbeck.networks.losses"]
    assert "limbeck.synthetic.set" not in MODULES["limbeck.core.types"], "what only a type checker sees"


@pytest.mark.parametrize("folder", sorted(set(PARTS) - {"__init__"}))
def test_a_folder_imports_what_it_may(folder: str) -> None:
    assert folder in ARROWS, f"say in ARROWS what {folder} may import"
    imported = {other for other in PARTS[folder] if other in ARROWS}
    assert imported <= {"core", *ARROWS[folder].split()}


def test_an_arrow_leads_to_a_folder_and_never_back() -> None:
    assert set(PARTS) == {*ARROWS, "__init__"}
    assert list(TopologicalSorter({folder: arrows.split() for folder, arrows in ARROWS.items()}).static_order())


def test_there_is_no_cycle() -> None:
    assert list(TopologicalSorter(MODULES).static_order())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_modules_that_load_no_torch(module: str) -> None:
    code = f"import sys, limbeck.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_file_speaks_to_other_processes() -> None:
    importers = {name for name, tree in TREES.items() if any(m.startswith("torch.distributed") for m in imports(tree))}
    assert importers == {"limbeck.core.distributed"}
    importers = {name for name, tree in TREES.items() if "ray" in {m.partition(".")[0] for m in imports(tree)}}
    assert importers == {"limbeck.engines.cluster"}


# --- the public surface


@pytest.mark.parametrize("name", limbeck.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(limbeck, name)
    if inspect.isclass(value) or callable(value):
        assert inspect.getdoc(value), name
        own = str(value.__doc__)
        assert own != "None", "inherited"
        assert not own.startswith(f"{value.__name__}("), "made by dataclass"
    else:
        assert isinstance(value, dict | str)
    assert name in dir(limbeck)


def test_type_checkers_see_the_public_names_where_they_are_loaded_from() -> None:
    (block,) = [node for node in TREES["limbeck"].body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    typed = {alias.name: str(node.module).removeprefix("limbeck.") for node in imports for alias in node.names}
    assert typed == limbeck._WHERE
    assert all(alias.asname == alias.name for node in imports for alias in node.names), "not exported otherwise"


def has_example(value: object) -> bool:
    """Whether the docstring of a function or class, or of one of its methods, holds an example."""
    members = vars(value).values() if inspect.isclass(value) else ()
    return any(">>>" in (inspect.getdoc(part) or "") for part in (value, *filter(callable, members)))


def test_the_public_functions_and_classes_have_examples() -> None:
    values = {name: getattr(limbeck, name) for name in limbeck.__all__}
    without = [name for name, value in values.items() if callable(value) and not has_example(value)]
    assert without == []


def test_the_public_names_are_a_sorted_list_and_no_others() -> None:
    assert limbeck.__all__ == [*sorted(set(limbeck.__all__) - {"__version__"}), "__version__"]
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = limbeck.no_such_name
    with pytest.warns(DeprecationWarning, match=r"limbeck\.descend is now limbeck\.outer_loop"):
        assert limbeck.descend is limbeck.outer_loop
    for name, where in limbeck._WHERE.items():
        assert find_spec(f"limbeck.{where}"), name


@pytest.mark.parametrize("name", TREES)
def test_public_functions_and_classes_have_docstrings(name: str) -> None:
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    public = [node for node in TREES[name].body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert ast.get_docstring(TREES[name]), "the module itself"
    assert [node.name for node in public if not ast.get_docstring(node)] == []


# --- house rules


OTHER_FILES = sorted([*TESTS.rglob("*.py"), *(TESTS.parent / "benchmarks").glob("*.py")])


@pytest.mark.parametrize("path", [*FILES.values(), *OTHER_FILES], ids=lambda path: str(path.relative_to(TESTS.parent)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


NO_NAMES = {
    *("made", "held", "found", "each", "said", "told", "asked", "known", "given", "more", "rest", "kept", "taken"),
    *("tried", "wanted", "seen"),
}
JSON_FIELDS = {("limbeck.core.records", "kept"), ("limbeck.core.records", "more")}  # names in files of before
CHECKED = dict(TREES)
for _path in OTHER_FILES:
    CHECKED[str(_path.relative_to(TESTS.parent))] = ast.parse(_path.read_text(encoding="utf-8"))


def bound_names(node: ast.AST) -> Iterator[str]:
    """The names of variables, arguments, functions and classes below a node."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, ast.arg):
            yield child.arg
        elif isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child.name


@pytest.mark.parametrize("name", CHECKED)
def test_names_are_nouns_and_verbs(name: str) -> None:
    """A participle or a pronoun does not say what a variable holds."""
    names = {bound.strip("_") for bound in bound_names(CHECKED[name])}
    assert {bound for bound in names & NO_NAMES if (name, bound) not in JSON_FIELDS} == set()


GLOBAL = re.compile(r"\btorch\.(cuda\.)?(manual_seed|seed)\b|\b(np|numpy)\.random\.|\brandom\.seed\b")
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_reads_or_seeds_a_global_generator(name: str) -> None:
    assert not GLOBAL.search(FILES[name].read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)):
        target = call.func
        if isinstance(target, ast.Attribute) and target.attr in DRAWS and ast.unparse(target.value) == "torch":
            assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
