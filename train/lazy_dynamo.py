"""Training without `torch._dynamo` and `DTensor` until something needs them: two thirds of a trainer's start.

torchvision imports dynamo for one function, the first optimizer to tell it that it need not look, Accelerate to ask
whether a model was compiled and a parameter is a shard, and DistributedDataParallel which of its ways it takes when
compiled. With SymPy and the inductor that is 10 s of a core of our machines, twice what the rest of torch takes
(`python -X importtime`), and nothing of it runs in eager mode on whole weights.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any


class _None:
    """A class that nothing is an instance of: what is compiled, or a shard, where nothing is."""


def _is_compile_supported(device_type: str) -> bool:
    _load()
    return bool(sys.modules["torch._dynamo.utils"].is_compile_supported(device_type))


# What each module answers while it is not loaded.
_ANSWERS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {
        "disable": lambda fn, recursive=True, **_: fn,  # nothing traces it
        "graph_break": lambda *_, **__: None,  # there is no graph
        "eval_frame": SimpleNamespace(OptimizedModule=_None),
        "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
    },
    "torch._dynamo.utils": {
        "is_compile_supported": _is_compile_supported,
        "get_optimize_ddp_mode": lambda: "ddp_optimizer",  # the default of torch._dynamo.config
    },
    "torch.distributed.tensor": {"DTensor": _None},
}


class _StandIn(ModuleType):
    """Asked for anything that it has no answer to, it puts the real modules in place and asks them."""

    def __getattr__(self, name: str) -> Any:
        _load()
        return getattr(sys.modules[self.__name__], name)


class _Submodules(MetaPathFinder):
    """Finds what is inside of a module that is stood in for: by then the real one has loaded it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = fullname.rpartition(".")[0]
        if not isinstance(sys.modules.get(parent), _StandIn):
            return None
        _load()
        if module := sys.modules.get(fullname):
            spec = ModuleSpec(fullname, _Loaded(module))
            vars(module)["__spec__"] = spec  # which Python takes instead of the one that is returned
            return spec
        return PathFinder.find_spec(fullname, sys.modules[parent].__path__)


class _Loaded(Loader):
    """Loads nothing: the module is there, and would be run a second time."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec


def put_off() -> None:
    """Let the modules be loaded when they are needed; without effect where one of them is loaded already."""
    import torch.distributed  # noqa: F401 (what the modules are put into)

    if any(name in sys.modules for name in _ANSWERS):
        return
    for name, answers in _ANSWERS.items():
        module = _StandIn(name)
        # An import asks a module for its path, and code that looks through all modules for their files.
        vars(module).update(answers, __path__=[], __file__=None, __spec__=ModuleSpec(name, None))
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        vars(sys.modules[parent])[last] = module
    sys.meta_path.insert(0, _Submodules())


def _load() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Submodules)]
    for name in _ANSWERS:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
            parent, _, last = name.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(last, None)
    for name in _ANSWERS:
        importlib.import_module(name)
