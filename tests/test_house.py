"""The plan of the house: which room may import from which, no circles, and why an import is lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import pad
from pad.watching.state import State

HOUSE = Path(pad.__file__).parent

# From the ground up; what stands on one line is independent of each other. `pad` itself is its version.
LAYERS = (
    {"pad"},
    {"errors"},
    {"tolerance", "progress", "provenance"},
    {"config"},
    {"devices", "distributed", "latents", "remote"},
    {"images"},
    {"recipes", "backbones", "networks"},
    {"similarity"},
    {"views"},
    {"store"},
    {"judging"},
    {"showing"},
    {"exported"},
    {"detector"},
    {"export", "learning", "scoring"},
    {"cluster"},
    {"registry", "watching"},
    {"serving"},
    {"api"},
    {"sklearn"},
    {"commands"},
    {"__main__"},
)

# Imports that do not stand at the top of a module, by what is imported. None of `pad`'s own is among them.
LAZY = {
    "cv2": "an extra",
    "fsspec": "only for what lies in a store",
    "huggingface_hub": "reads the environment; and its upload takes half a second to import",
    "jinja2": "start-up: only the report needs it",
    "lmdb": "an extra",
    "lpips": "start-up: imports torchvision",
    "markupsafe": "start-up: comes with jinja2",
    "matplotlib": "start-up: only pictures need it",
    "certifi": "comes with the hub's client, and is not asked for by itself",
    "mlflow": "an extra",
    "onnx": "an extra",
    "onnxruntime": "an extra",
    "onnxscript": "an extra",
    "pandas": "an extra",
    "pyarrow": "an extra",
    "safetensors": "start-up: imports torch, which `pad zoo list` does without",
    "scipy": "start-up: only metrics and rates need it",
    "sklearn": "start-up: a second, to score one image without metrics",
    "tensorboard": "an extra",
    "timm": "start-up: seconds, for models that have a generator alone",
    "torch": "start-up: seconds, which `pad zoo list` does without",
    "torchvision": "start-up: seconds, to score one image",
    "umap": "an extra",
    "wandb": "an extra",
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom, inside functions and for type checking included."""
    return grimp.build_graph("pad", cache_dir=None)


def room(module: str) -> str:
    """`images` of `pad.images.decode`."""
    return module.split(".")[1] if "." in module else module


def edges(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            yield module, imported


def test_every_module_lies_in_a_room_of_the_plan(graph: grimp.ImportGraph) -> None:
    rooms = {room(module) for module in graph.modules}
    assert rooms == set().union(*LAYERS)
    assert len(rooms) == sum(map(len, LAYERS))


def test_imports_point_downwards(graph: grimp.ImportGraph) -> None:
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    upward = [
        f"{module} imports {imported}"
        for module, imported in edges(graph)
        if room(module) != room(imported) and height[room(module)] <= height[room(imported)]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    circles = [
        f"{module} - {imported}"
        for module, imported in edges(graph)
        if graph.find_shortest_chain(imported, module) is not None
    ]
    assert not circles


def lazy_imports() -> Iterator[tuple[Path, str]]:
    """What is imported elsewhere than at the top of a module: in functions, in classes, under a condition."""
    for path in sorted(HOUSE.rglob("*.py")):
        if path == HOUSE / "__init__.py":  # all of what `import pad` gives is lazy
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if node in tree.body:
                continue
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module or ""


def package(name: str) -> str:
    """Of torch.utils.tensorboard: tensorboard."""
    return "tensorboard" if name.endswith("tensorboard") else name.split(".")[0]


def test_lazy_imports_are_those_that_have_a_reason() -> None:
    found = {package(name) for _, name in lazy_imports()}
    assert found == set(LAZY)


NO_TENSORS = ["--help", "train --help", "zoo list", "zoo show digits/three", "watch --help"]


@pytest.mark.parametrize("words", [*NO_TENSORS, "watch proposals --state STATE"])
def test_what_needs_no_tensors_imports_no_torch(words: str, tmp_path: Path) -> None:
    State(tmp_path, create=True).close()
    words = words.replace("STATE", str(tmp_path))
    code = (
        "import sys; from pad.commands.parser import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert 'torch' not in sys.modules, 'torch was imported'"
    )
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
