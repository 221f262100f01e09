"""The shape of the code: which way imports go, and that no part of it outgrows a reader."""

import ast
import graphlib
import subprocess
import sys

import pytest
from places import ROOT

PACKAGE = ROOT / "timemoe_jax"
MAINS = ("train_main", "eval_main", "study_main")
# From the ground up: a module imports from its own room and from those before it.
ROOMS = (
    ("errors",),
    ("files",),
    ("config", "plotting"),
    ("runtime",),
    ("data",),
    ("nn",),
    ("models",),
    ("checkpoints",),
    ("training",),
    ("forecasting",),
    ("evaluation",),
    ("cli", *MAINS),
)
MAX_ROOT_FILES = 6
MAX_FOLDER_FILES = 13
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / f"{name}.py" for name in MAINS)]
    if path.exists()
}
MODULES = sorted(FILES)


def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(), FILES[module].name)


def imports_of(module: str) -> set[str]:
    """Every module imported anywhere in a file, inside functions too, by its full name."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inner & FILES.keys()
            found |= submodules
            if len(submodules) < len(inner):
                found.add(node.module)
    return found


def package_imports(module: str) -> set[str]:
    """Those of them that are ours, without the package's table of contents."""
    return {name for name in imports_of(module) if name in FILES and name != "timemoe_jax"}


def floor_of(module: str) -> int:
    room = module.removeprefix("timemoe_jax.").split(".")[0]
    floors = [i for i, rooms in enumerate(ROOMS) if room in rooms]
    assert floors, f"{module} is in none of ROOMS: say on which rooms it stands"
    return floors[0]


# The package's own file only lists the public names.
PLACED = [name for name in MODULES if name != "timemoe_jax.__init__"]


@pytest.mark.parametrize("module", PLACED)
def test_imports_go_one_way(module):
    above = [name for name in package_imports(module) if floor_of(name) > floor_of(module)]
    assert not above, f"{module} imports {above}, which stand on it"


OUTSIDE = [name for name in PLACED if floor_of(name) > floor_of("timemoe_jax.models")]


@pytest.mark.parametrize("module", OUTSIDE)
def test_no_room_above_knows_a_family(module):
    """The seam is `models.base`; `models.decoding` has the shape of a forecast."""
    known = {"timemoe_jax.models.base", "timemoe_jax.models.decoding"}
    models = {name for name in package_imports(module) if name.startswith("timemoe_jax.models")}
    assert models <= known


def test_imports_have_no_cycle():
    graph = {name: package_imports(name) for name in PLACED}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_check_sees_imports():
    """Of either form, and those inside functions."""
    assert "timemoe_jax.nn.experts.routing" in package_imports("timemoe_jax.training.losses")
    assert "safetensors" in imports_of("timemoe_jax.checkpoints.published")


@pytest.mark.parametrize("module", [name for name in PLACED if name.startswith("timemoe_jax.data")])
def test_data_knows_no_model_and_no_jax(module):
    roots = {name.split(".")[0] for name in imports_of(module)}
    assert not roots & {"jax", "flax", "optax", "orbax"}
    allowed = tuple(f"timemoe_jax.{name}" for name in ("data", "errors", "files", "config"))
    assert all(name.startswith(allowed) for name in package_imports(module))


@pytest.mark.parametrize("module", [name for name in PLACED if ".nn." in name])
def test_parts_know_no_configuration(module):
    assert "timemoe_jax.config" not in imports_of(module)


@pytest.mark.parametrize("module", MODULES)
def test_no_torch(module):
    roots = {name.split(".")[0] for name in imports_of(module)}
    assert not roots & {"torch", "transformers", "tensorflow"}
    assert "safetensors.torch" not in imports_of(module)


def test_weights_are_never_unpickled():
    for module in ("timemoe_jax.checkpoints.published", "timemoe_jax.checkpoints.store"):
        assert not imports_of(module) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def test_importing_the_package_imports_neither_torch_nor_tensorflow():
    code = (
        "import sys, timemoe_jax, timemoe_jax.checkpoints.published, timemoe_jax.models.decoding\n"
        "print(sorted({'torch', 'tensorflow', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_the_tree_can_be_taken_in_at_a_glance():
    files = dict.fromkeys([PACKAGE, *(p.parent for p in PACKAGE.rglob("*.py"))], 0)
    for path in FILES.values():
        if PACKAGE in path.parents and path.name != "__init__.py":
            files[path.parent] += 1
    assert files[PACKAGE] < MAX_ROOT_FILES
    assert not {str(folder): n for folder, n in files.items() if n > MAX_FOLDER_FILES}


def test_there_is_no_drawer_for_everything():
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_says_what_it_is(module):
    tree = tree_of(module)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds)]
    methods = [
        node
        for outer in top
        if isinstance(outer, ast.ClassDef) and not outer.name.startswith("_")
        for node in outer.body
        if isinstance(node, kinds)
    ]
    bare = [
        node.name
        for node in [*top, *methods]
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not bare, f"{module}: {bare} lack a docstring"
    assert not tree.body or ast.get_docstring(tree), f"{module} lacks a docstring"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_fits_a_reader(module):
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= MAX_FILE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_a_function_fits_a_screen(module):
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: n for name, n in long.items() if n > MAX_FUNCTION_LINES}


def text_without_charset(tree: ast.AST) -> list[int]:
    """The lines that read or write text in the charset of the locale."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        texts = [arg.value for arg in ast.walk(node) if isinstance(arg, ast.Constant)]
        module = getattr(getattr(node.func, "value", None), "id", None)
        other = module in ("os", "archive", "tarfile", "zipfile", "job", "ipc")
        opens = name == "open" and not other and not {"rb", "wb", "ab", "rb+", "r+b"} & {*texts}
        if name == "open" and isinstance(node.func, ast.Attribute):
            opens = opens and bool({"r", "w", "a", "x"} & {*texts})
        written = {"read_text": 0, "write_text": 1}.get(str(name))
        if opens or (written is not None and len(node.args) == written):
            lines.append(node.lineno)
    return lines


def test_text_files_are_utf8_whatever_the_locale():
    paths = [
        *FILES.values(),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "examples").glob("*.py"),
    ]
    found = {path.name: text_without_charset(ast.parse(path.read_text("utf-8"))) for path in paths}
    assert not {name: lines for name, lines in found.items() if lines}
    wrong = 'open(a)\nopen(a, "w")\nb.read_text()\nb.write_text(c)\nb.open("a")\n'
    right = 'open(a, "rb")\nb.read_text("utf-8")\nb.open("a", encoding="utf-8")\n'
    assert text_without_charset(ast.parse(wrong + right)) == [1, 2, 3, 4, 5]
