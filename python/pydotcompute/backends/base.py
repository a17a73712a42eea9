"""What every backend offers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Backend", "BackendArray", "BackendType", "KernelExecutionResult"]

_T = TypeVar("_T")


class BackendType(Enum):
    """What a backend runs on."""

    CPU = auto()
    CUDA = auto()
    METAL = auto()


@dataclass
class KernelExecutionResult:
    """What became of running a kernel.

    Attributes
    ----------
    success
        Whether it ended without an exception.
    execution_time_ms
        How long it took, in milliseconds.
    error
        The exception, or None.
    result
        What the kernel returned.
    """

    success: bool
    execution_time_ms: float
    error: Exception | None = None
    result: Any = None


class Backend(ABC):
    """Memory and kernels of one kind of device."""

    @property
    @abstractmethod
    def backend_type(self) -> BackendType:
        """What it runs on."""

    @property
    @abstractmethod
    def is_available(self) -> bool:
        """Whether it can be used on this machine."""

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot be used; empty when it can."""
        return ""

    @property
    @abstractmethod
    def device_count(self) -> int:
        """How many devices it has; 0 when it cannot be used."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make an array on the device."""

    @abstractmethod
    def free(self, array: Any) -> None:
        """Let go of an array."""

    @abstractmethod
    def copy_to_device(self, host_array: NDArray[Any]) -> Any:
        """Copy an array to the device."""

    @abstractmethod
    def copy_to_host(self, device_array: Any) -> NDArray[Any]:
        """Copy an array to main memory."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""

    @abstractmethod
    def execute_kernel(
        self,
        kernel: Callable[..., Any],
        grid_size: tuple[int, ...],
        block_size: tuple[int, ...],
        *args: Any,
        **kwargs: Any,
    ) -> KernelExecutionResult:
        """Run a kernel and wait for it; an exception goes into the result."""

    @abstractmethod
    def compile_kernel(
        self, func: Callable[..., Any], signature: str | None = None
    ) -> Callable[..., Any]:
        """Compile a kernel."""


class BackendArray(Generic[_T]):
    """An array and the backend that it belongs to.

    Parameters
    ----------
    data
        The backend's own array.
    backend
        The backend.
    owns_data
        Whether the backend frees the array when this object goes.
    """

    def __init__(self, data: Any, backend: Backend, *, owns_data: bool = True) -> None:
        self._data = data
        self._backend = backend
        self._owns_data = owns_data

    @property
    def data(self) -> Any:
        """The backend's own array."""
        return self._data

    @property
    def backend(self) -> Backend:
        """The backend."""
        return self._backend

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return tuple(self._data.shape)

    @property
    def dtype(self) -> Any:
        """The element type: NumPy's, or the backend's own."""
        return self._data.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return int(self._data.nbytes)

    def to_host(self) -> NDArray[Any]:
        """Copy it to main memory."""
        return np.asarray(self._backend.copy_to_host(self._data))

    def synchronize(self) -> None:
        """Wait until the backend has done what it was given."""
        self._backend.synchronize()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._owns_data:
                self._backend.free(self._data)

    def __repr__(self) -> str:
        return (
            f"BackendArray(shape={self.shape}, dtype={self.dtype}, "
            f"backend={self._backend.backend_type.name})"
        )
