"""Entry points for torch.hub.

    normals = torch.hub.load("OWNER/REPO", "normals")     # or depth, reshading
    energy = torch.hub.load("OWNER/REPO", "energy")
    loss = torch.hub.load("OWNER/REPO", "consistency_loss", "normal")

The parameters are those of `consistency`. The modules of this project have short names (`utils`,
`models`, …), which a program that loads them may have too. So they are imported in isolation: as
`xtconsistency.utils`, `xtconsistency.models`, … `import utils` still finds the program's own.
"""

# no names are imported from modules: torch.hub.list would show them as entry points
import importlib
import pathlib
import sys
import types

dependencies = ["torch", "torchvision", "numpy", "scipy", "PIL", "matplotlib", "tqdm", "fire",
                "safetensors"]  # fmt: skip

_ROOT = pathlib.Path(__file__).resolve().parent
_PACKAGE = "xtconsistency"


def normals(**options):
    """Return a network for surface normals: (B, 3, H, W) → (B, 3, H, W), both in [0, 1].

    Images may have any size. `options` are those of `consistency.pretrained`: variant, checkpoint,
    model, models_dir. By default, it is the small network that ships with the project, trained on
    rendered rooms.
    """
    return _consistency().pretrained("normal", **options)


def depth(**options):
    """Return a network for depth: (B, 3, H, W) → (B, 1, H, W), both in [0, 1]. See `normals`."""
    return _consistency().pretrained("depth", **options)


def reshading(**options):
    """Return a network for shading: (B, 3, H, W) → (B, 3, H, W), in [0, 1]. See `normals`."""
    return _consistency().pretrained("reshading", **options)


def energy(**options):
    """Return a module for the consistency energy, (B, 3, H, W) → (B,): `consistency.Energy`."""
    return _consistency().Energy(**options)


def consistency_loss(*arguments, **options):
    """Return a module for the losses, (prediction, truth) → {name: (B,)}: `ConsistencyLoss`.

    Its `balance_gradients` is `consistency.balance_gradients`.
    """
    return _consistency().ConsistencyLoss(*arguments, **options)


def _consistency() -> types.ModuleType:
    """Import `consistency` in isolation, once for each copy of the project."""
    loaded = sys.modules.get(f"{_PACKAGE}.consistency")
    if loaded is None or loaded.__file__ != str(_ROOT / "consistency.py"):
        _import_renamed()
    return sys.modules[f"{_PACKAGE}.consistency"]


def _import_renamed() -> None:
    """Import `consistency`, and rename all modules of the project to xtconsistency.…

    The program's modules of the same names, and its search path, stay as they were. Classes and
    functions of the modules are renamed too, so that pickle and torch.compile find them.
    """
    own = {p.stem for p in _ROOT.glob("*.py")} | {p.parent.name for p in _ROOT.glob("*/*.py")}

    def taken_out() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in own]
        return {name: sys.modules.pop(name) for name in names}

    theirs, path = taken_out(), list(sys.path)
    sys.path.insert(0, str(_ROOT))
    try:
        importlib.import_module("consistency")
        ours = taken_out()
    finally:
        taken_out()
        sys.modules.update(theirs)
        sys.path[:] = path
    package = types.ModuleType(_PACKAGE, "The modules of the project, imported by its hubconf.py.")
    package.__path__ = []
    sys.modules[_PACKAGE] = package
    for name in sorted(ours):  # a package before its modules
        _rename(ours[name], f"{_PACKAGE}.{name}")


def _rename(module: types.ModuleType, name: str) -> None:
    for value in vars(module).values():
        defined_here = getattr(value, "__module__", None) == module.__name__
        if defined_here and hasattr(value, "__qualname__"):  # a class or a function
            value.__module__ = name
    module.__name__ = name
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
