"""The order of the house: imports run down only, and a new kind, data set or paper is a folder or a file and a line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
FLOORS = (  # from the ground up; what stands on one floor may import from its own, as long as there is no circle
    "__init__ compat errors experiment guarded metrics names",
    "config files intervals textfiles workspace",
    "sheets progress scores",
    "cluster shards",
    "datasets",
    "text",
    "models",
    "tasks",
    "plan training evaluation inspection rates",
    "tables status estimate doctor paper reference steps",
    "figures",
    "pose",
    "stages",
    "workflow report actions demo rehearsal",
    "cli",
    "__main__",
)
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names.split()}


@cache
def _modules() -> dict[str, Path]:
    paths = {".".join(path.relative_to(SRC).with_suffix("").parts): path for path in SRC.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def _imported(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(_modules())
            yield from inner or {node.module}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pipeline."))


@cache
def _arrows() -> dict[str, set[str]]:
    return {name: {other for other in _imported(path) if other != name} for name, path in _modules().items()}


def _floor(module: str) -> int:
    return HEIGHT[module.split(".")[1] if "." in module else "__init__"]


def test_every_file_stands_on_a_floor():
    assert {name.split(".")[1] for name in _modules() if "." in name} | {"__init__"} == set(HEIGHT)


def test_no_file_imports_from_a_higher_floor():
    up = [
        f"{name} -> {other}" for name, others in _arrows().items() for other in others if _floor(other) > _floor(name)
    ]
    assert not up


def test_no_files_import_each_other_in_a_circle():
    left = {name: set(others) for name, others in _arrows().items()}
    while ground := [name for name, others in left.items() if not others & set(left)]:
        for name in ground:
            del left[name]
    assert not left, f"each of these imports another of them: {sorted(left)}"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("from pipeline.plan import Plan; Plan.read('config')", id="Snakemake, at the start of every job"),
        pytest.param(
            "import pipeline.__main__, pipeline.cluster.client, pipeline.evaluation.needed",
            id="train and evaluate, which hand their work to the cluster",
        ),
    ],
)
def test_what_is_heavy_stays_out_of(repo, code):
    code += (
        "; import sys; "
        "print([name for name in ('torch', 'ray', 'numpy', 'pandas', 'mmengine', 'cv2') if name in sys.modules])"
    )
    assert _printed(repo, code) == "[]"


def _printed(repo: Path, code: str) -> str:
    """What `code` prints in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.datasets.frames", "pipeline.datasets.synthetic", "pipeline.datasets.skeletons.prepare",
        "pipeline.datasets.skeletons.graph", "pipeline.models.backbones.shipped",
    ],
)  # fmt: skip
def test_data_are_prepared_without_torch(repo, module):
    """Each of the processes that decode clips loads these."""
    assert _printed(repo, f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_a_training_does_without_the_client_of_language_models(repo):
    """Half a second in each process that trains, and in each `predict`."""
    code = "import sys, pipeline.training.train, pipeline.models.build; print('openai' in sys.modules)"
    assert _printed(repo, code) == "False"


def _unsaid(path: Path) -> Iterator[int]:
    """Lines on which a file opens, reads or writes text in whatever encoding the user's locale has."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        texts = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if any(word.arg == "encoding" for word in node.keywords) or "utf-8" in texts:
            continue
        mode = ast.unparse(node.args[0]) if node.args else ""
        opens = node.func.attr == "open" and "path" in ast.unparse(node.func.value) and "b" not in mode
        if node.func.attr in ("read_text", "write_text") or opens:
            yield node.lineno


def test_text_is_utf_8_whatever_the_locale():
    found = [f"{path.relative_to(SRC)}:{line}" for path in _modules().values() for line in _unsaid(path)]
    assert not found


def test_no_two_files_of_tests_share_a_name(repo):
    """pytest imports them by name alone: of two that are called alike the second one's tests never run."""
    names = Counter(path.name for path in (repo / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
