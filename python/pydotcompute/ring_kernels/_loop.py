"""The event loop: uvloop's policy and eager tasks, both only where they are to be had.

``PYDOTCOMPUTE_NO_UVLOOP``, set to anything but the empty string, keeps uvloop away everywhere.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import sys
import warnings
from typing import Any

_uvloop_installed = False
_eager_tasks_installed = False


def _uvloop_forbidden() -> bool:
    return bool(os.environ.get("PYDOTCOMPUTE_NO_UVLOOP"))


def is_uvloop_available() -> bool:
    """Whether uvloop can be imported here; it cannot on Windows."""
    return sys.platform != "win32" and importlib.util.find_spec("uvloop") is not None


def install_uvloop() -> bool:
    """Make uvloop's the event loop policy of the process.

    Returns
    -------
    bool
        Whether it is: False on Windows, without uvloop, and where ``PYDOTCOMPUTE_NO_UVLOOP`` says
        no.
    """
    global _uvloop_installed
    if _uvloop_forbidden():
        return False
    if is_uvloop_installed():
        return True
    if not is_uvloop_available():
        return False
    import uvloop

    with warnings.catch_warnings():
        # Policies are on their way out of asyncio (Python 3.14); programs written for this package
        # rely on this one as long as there are any.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    _uvloop_installed = True
    return True


def is_uvloop_installed() -> bool:
    """Whether `install_uvloop` has installed the policy, and it is still there."""
    if not _uvloop_installed:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = asyncio.get_event_loop_policy()
    return type(policy).__module__.split(".")[0] == "uvloop"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _eager_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
    """`asyncio.eager_task_factory`, also for loops that pass on ``eager_start``, of which early
    releases of Python 3.12 and 3.13 do not know."""
    if options.pop("eager_start", None) is False:
        return asyncio.Task(coro, loop=loop, **options)
    factory: Any = vars(asyncio)["eager_task_factory"]
    return factory(loop, coro, **options)


def install_eager_task_factory(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Let tasks of `loop`, or of the running loop, start at once (Python 3.12 and newer).

    Returns
    -------
    bool
        Whether they do.
    """
    global _eager_tasks_installed
    loop = loop if loop is not None else _running_loop()
    if not hasattr(asyncio, "eager_task_factory") or loop is None:
        return False
    loop.set_task_factory(_eager_task)
    _eager_tasks_installed = True
    return True


def is_eager_tasks_installed() -> bool:
    """Whether `install_eager_task_factory` has succeeded in this process."""
    return _eager_tasks_installed


def get_loop_info() -> dict[str, Any]:
    """What is known of the event loop.

    Returns
    -------
    dict
        ``loop_class`` ("no_running_loop" outside of one), ``uvloop_available``,
        ``uvloop_installed``, ``eager_tasks_available``, ``eager_tasks_installed``, ``platform``
        and ``python_version``.
    """
    loop = _running_loop()
    return {
        "loop_class": "no_running_loop" if loop is None else type(loop).__name__,
        "uvloop_available": is_uvloop_available(),
        "uvloop_installed": is_uvloop_installed(),
        "eager_tasks_available": hasattr(asyncio, "eager_task_factory"),
        "eager_tasks_installed": is_eager_tasks_installed(),
        "platform": sys.platform,
        "python_version": platform.python_version(),
    }


def create_optimized_loop() -> asyncio.AbstractEventLoop:
    """Make a new event loop, uvloop's where that may be used; it is not set as the current one."""
    if is_uvloop_available() and not _uvloop_forbidden():
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.SelectorEventLoop() if sys.platform != "win32" else asyncio.new_event_loop()
    install_eager_task_factory(loop)
    return loop


def optimize_current_loop() -> dict[str, bool]:
    """Do what can be done for the running loop.

    Returns
    -------
    dict
        ``eager_tasks``: whether tasks start at once from now on.
    """
    return {"eager_tasks": install_eager_task_factory()}
