"""Kernels in processes of their own: how a child finds its function, and what it does with it.

The parent says where the function is (its module and its name); the child, a new interpreter,
imports it. The main program is imported by its path, under another name, so that what it guards by
``if __name__ == "__main__":`` is not run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydotcompute import _native
from pydotcompute.exceptions import InvalidConfigurationError
from pydotcompute.handlers.native import NativeHandler
from pydotcompute.handlers.spec import handler_of

if TYPE_CHECKING:
    from pydotcompute.ring_kernels.lifecycle import RingKernel

#: The name under which a child imports the main program of its parent.
_MAIN = "__dotcompute_main__"

#: Where what children write without a logger arrives.
_child_logger = logging.getLogger("pydotcompute.child")

#: Whether this process is a child that is still looking for its function.
_is_loading = False

_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Say where a new interpreter finds `function`.

    Raises
    ------
    InvalidConfigurationError
        If it cannot: says why.
    """
    if (made_by := getattr(function, "_made_by", None)) is not None:
        # It is a variable of nobody's: it is made again.
        module, name, arguments = made_by
        return {"module": module, "name": name, "main": None, "arguments": arguments}
    if isinstance(function, NativeHandler):
        module, name = _variable(function)
    else:
        name = getattr(function, "__qualname__", None)
        module = getattr(function, "__module__", None)
    if name is None or module is None:
        raise _unfit(
            function, "is an object without a name at the top of a module (a partial, say)"
        )
    if "<lambda>" in name:
        raise _unfit(function, "is a lambda, which has no name to import it by")
    if "<locals>" in name:
        raise _unfit(function, "is defined inside a function, where no import finds it")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function and getattr(found, "_original_func", None) is not function:
        raise _unfit(function, f"is not what {module}.{name} names")
    where: dict[str, Any] = {"module": module, "name": name, "main": None}
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        path = getattr(main, "__file__", None)
        if spec is not None:
            where["module"] = spec.name
        elif path is not None and os.path.exists(path):
            where["main"] = os.path.abspath(path)
        else:
            raise _unfit(function, "is typed in at a prompt: there is no file to import it from")
    return where


def _variable(thing: object) -> tuple[str, str] | tuple[None, None]:
    """The module and the name of the variable that something is the value of."""
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is thing:
                return module_name, name
    return None, None


def _unfit(function: Callable[..., Any], reason: str) -> InvalidConfigurationError:
    return InvalidConfigurationError(
        "executor",
        "process",
        f"cannot run {function!r}, which {reason}: another process has to import it by its module "
        "and its name",
    )


def arguments(kernel: RingKernel[Any, Any], function: Callable[..., Any]) -> bytes:
    """What the child of `kernel` is told."""
    if _is_loading:
        raise InvalidConfigurationError(
            "executor",
            "process",
            "launched while a child imports the program: guard what the program does by "
            'if __name__ == "__main__":',
        )
    config = kernel.config
    told = {
        "function": describe(function),
        "output_queue_size": config.output_queue_size,
        "level": logging.getLogger().getEffectiveLevel(),
    }
    # Numbers of numpy are no JSON.
    return json.dumps(told, default=lambda number: number.item()).encode()


def first_step(function: Callable[..., Any]) -> str:
    """What a child has to do in time, as an error says it."""
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
    return (
        f"its function {name}: the import of its module takes longer than start_timeout, or never "
        'ends (guard what a program does by if __name__ == "__main__":)'
    )


def command(
    run: str = "from pydotcompute.ring_kernels._process import child_main; child_main()",
) -> list[str]:
    """The command that starts a child, which runs this line."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {run}"
    flags: list[str] = vars(subprocess)["_args_from_interpreter_flags"]()
    return [sys.executable, *flags, "-c", code]


def sink(kernel_id: str, kind: str, level: int, target: str, text: str) -> None:
    """Pass on what a child wrote or logged; called by a thread of the kernel."""
    if kind == "log":
        logging.getLogger(target).log(
            _LEVELS.get(level, logging.DEBUG), "%s", text, extra={"kernel_id": kernel_id}
        )
    else:
        error = kind == "stderr"
        _child_logger.log(
            logging.WARNING if error else logging.INFO,
            "%s: %s",
            kernel_id,
            text,
            extra={"kernel_id": kernel_id, "stream": kind},
        )


class _ToParent(logging.Handler):
    """Sends the records of a child's loggers to its parent."""

    def __init__(self, host: _native.ProcessHost) -> None:
        super().__init__()
        self._host = host
        # The parent's loggers add the rest.
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            level = 1 if record.levelno >= logging.ERROR else 2
            if record.levelno < logging.WARNING:
                level = 3 if record.levelno >= logging.INFO else 4
            self._host.log(level, record.name, text)
        except Exception:
            self.handleError(record)


def child_main() -> None:
    """Run the kernel that this process was started for; the main program of a child."""
    host = _native.ProcessHost()
    fault: str | None = None
    try:
        told = json.loads(host.args)
        logging.basicConfig(handlers=[_ToParent(host)], level=told["level"])
        function = _load(**told["function"])
        handler = handler_of(function)
        if handler is not None:
            # What it keeps the parent knows.
            host.run_compiled(handler.compile(host.kernel_id, None))
        else:
            fault = asyncio.run(_serve(host, function, told))
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            raise
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        host.end(fault)


def _load(
    module: str, name: str, main: str | None, arguments: dict[str, Any] | None = None
) -> Callable[..., Any]:
    global _is_loading
    _is_loading = True
    try:
        found: Any = _import_main(main) if main is not None else importlib.import_module(module)
    finally:
        _is_loading = False
    for part in name.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found if arguments is None else found(**arguments)
    return function


def _import_main(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MAIN, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    # Under both names: its classes say that they are of the one, its parent's of the other.
    sys.modules[_MAIN] = sys.modules["__main__"] = module
    sys.path.insert(0, os.path.dirname(path))
    spec.loader.exec_module(module)
    return module


async def _serve(
    host: _native.ProcessHost, function: Callable[..., Any], told: dict[str, Any]
) -> str | None:
    from pydotcompute.ring_kernels.lifecycle import RingKernel, RingKernelConfig

    config = RingKernelConfig(
        host.kernel_id,
        input_queue_size=host.window,
        output_queue_size=told["output_queue_size"],
    )
    kernel: RingKernel[Any, Any] = RingKernel(host.kernel_id, function, config=config)
    kernel._far_side = True
    await kernel.launch()
    host.wait_for_activation()
    await kernel.activate()
    # A thread of its own, which carries messages while the loop runs the function.
    ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def carry() -> None:
        try:
            outcome = host.run(kernel)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, ended, outcome)

    threading.Thread(target=carry, name="dotcompute-host", daemon=True).start()
    return await ended


def _set(future: asyncio.Future[str | None], value: str | None) -> None:
    if not future.done():
        future.set_result(value)
