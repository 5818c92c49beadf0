"""Rules of the code base: sizes, layers and what is banned. See docs/architecture.md."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "agent_r1"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a room imports only from rows above its own (earlier in this list).
ROWS = [
    ("errors", "__init__"),
    ("types", "registry", "tracing", "http1", "under_way"),
    ("messages",),
    ("algorithms",),
    ("config",),
    ("sandbox",),
    ("tool",),
    ("reward",),
    ("data",),
    ("models",),
    ("rollout",),
    ("monitor",),
    ("viewer", "runs"),
    ("testing",),
    ("trainer",),
    ("distributed",),
    ("recipes",),
    ("cli",),
    ("__main__",),
]
ROW_OF = {room: number for number, row in enumerate(ROWS) for room in row}
HEAVY = {"torch", "transformers", "wandb", "matplotlib", "pandas", "ray", "vllm", "math_verify"}
LIGHT_ROOMS = ("types", "errors", "registry", "config", "sandbox", "tool", "cli")


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def functions(tree: ast.Module):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def imported_rooms(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agent_r1."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "agent_r1":
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names.update(p[1] for p in parts if p[0] == "agent_r1" and len(p) > 1)
    return {name for name in names if not name.startswith("__version")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_and_its_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    long = [f"{n.name}: {length(n)}" for n in functions(ast.parse(text)) if length(n) > 60]
    assert not long


def test_the_median_function_is_short():
    lengths = [length(n) for path in FILES for n in functions(ast.parse(path.read_text()))]
    assert statistics.median(lengths) <= 12


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rows_below_it_in_the_house(path):
    room = room_of(path)
    own = ROW_OF[room]
    rooms = imported_rooms(ast.parse(path.read_text())) - {room}
    wrong = sorted(r for r in rooms if ROW_OF.get(r, len(ROWS)) >= own)
    assert not wrong, f"{room} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_heavy_is_imported_by_the_light_rooms_at_module_level(path):
    if room_of(path) not in LIGHT_ROOMS:
        return
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in tree.body:
        for inner in ast.walk(node) if isinstance(node, ast.Try | ast.If) else [node]:
            if id(inner) in guarded:
                continue
            if isinstance(inner, ast.Import):
                names.update(alias.name.split(".")[0] for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                names.add((inner.module or "").split(".")[0])
    assert not names & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_error_is_silenced_wholesale(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
    text = path.read_text()
    assert "# type: ignore\n" not in text
    assert "# noqa\n" not in text


def test_help_and_configuration_errors_import_nothing_heavy():
    code = (
        "import sys, agent_r1.cli, agent_r1.config.load\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_path_from_prompt_to_gradient_is_short():
    """What CONTRIBUTING and the architecture page name: the same ten files, 2,500 lines."""
    sentence = "read in this order: "
    page = (ROOT / "docs/architecture.md").read_text().split(sentence)[1].splitlines()[0]
    files = re.findall(r"`([\w/]+\.py)`", page)
    guide = (ROOT / "CONTRIBUTING.md").read_text().split("in ten files: ")[1].splitlines()[0]
    assert files == re.findall(r"`([\w/]+\.py)`", guide)
    assert len(files) <= 10
    assert sum(len((PACKAGE / name).read_text().splitlines()) for name in files) <= 2500


BESIDE = sorted(
    p for top in ("benchmarks", "examples", "scripts") for p in ROOT.glob(f"{top}/**/*.py")
)


def missing(module: str, names: list[str]) -> list[str]:
    """Which of ``names`` the text of a module of ours does not have; all, if there is none."""
    place = ROOT.joinpath(*module.split("."))
    file = next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.exists()), None)
    if file is None:
        return [f"{module}.{name}" for name in names]
    words = set(re.findall(r"\w+", file.read_text()))
    below = {path.stem for path in place.glob("*")}
    return [f"{module}.{name}" for name in names if name not in words | below]


@pytest.mark.parametrize("path", BESIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_no_test_runs_still_imports_what_is_there(path):
    """Benchmarks and examples are run on purpose only: a moved module would break them unseen."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "agent_r1":
            wrong += missing(node.module, [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.startswith("agent_r1.")]
            wrong += [n for name in ours for n in missing(*cut(name))]
    assert not wrong, f"moved or renamed: {', '.join(wrong)}"


def cut(name: str) -> tuple[str, list[str]]:
    module, _, last = name.rpartition(".")
    return module, [last]
