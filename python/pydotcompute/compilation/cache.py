"""Keeps compiled kernels on disk.

A folder holds `index.json` and one `<key>.ptx` for each entry. Several processes may share it: each
operation holds a lock file, reads the index if another process changed it, and replaces files as a
whole. Nothing that the index says is taken on trust.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: the processes of a user are not kept apart.
    fcntl = None  # type: ignore[assignment]

__all__ = ["CacheEntry", "KernelCache", "get_kernel_cache", "warmup_kernels"]

_MB = 2**20
_KEY_MAX = 120


@dataclass
class CacheEntry:
    """What the cache knows of a kernel.

    Attributes
    ----------
    kernel_name, source_hash, signature
        What it is.
    ptx_path
        The file that holds its code.
    metadata
        Whatever was stored with it.
    created_timestamp, last_accessed
        In seconds since the epoch.
    hit_count
        How often it was loaded.
    """

    kernel_name: str
    source_hash: str
    signature: str | None
    ptx_path: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    created_timestamp: float = 0.0
    last_accessed: float = 0.0
    hit_count: int = 0


def _default_dir() -> Path:
    """Make this user's folder: nobody else may write to it, or have prepared it."""
    user = f"_{os.getuid()}" if hasattr(os, "getuid") else ""
    path = Path(tempfile.gettempdir()) / f"pydotcompute_cache{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if path.is_symlink() or not path.is_dir() or not ours:
            raise PermissionError(f"{path} belongs to someone else")
        if found.st_mode & 0o077:
            path.chmod(0o700)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="pydotcompute_cache_"))
    return path


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".write-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


class KernelCache:
    """Keeps compiled kernels on disk. Safe for threads and for several processes.

    Parameters
    ----------
    cache_dir
        The folder, which is made if need be; None: one for this user in the system's folder for
        temporary files, which nobody else may read.
    max_entries
        How many kernels are kept; with 0 none is.
    max_size_mb
        How much code is kept, in MiB.
    """

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        max_entries: int = 128,
        max_size_mb: int = 256,
    ) -> None:
        if cache_dir is None:
            self._cache_dir = _default_dir()
        else:
            self._cache_dir = Path(cache_dir)
            self._cache_dir.mkdir(parents=True, exist_ok=True)
        self._max_entries = max_entries
        self._max_size_bytes = max_size_mb * _MB
        self._entries: dict[str, CacheEntry] = {}
        self._lock = threading.RLock()
        self._stamp: tuple[int, ...] | None = None
        self._latest = 0.0
        with contextlib.suppress(OSError), self._locked():
            pass  # Reads the index.

    # --- names ---

    def _get_cache_key(self, kernel_name: str, source_hash: str) -> str:
        """Name the file of a kernel: `name_hash`, or for a name that is no safe file name one made
        from it."""
        key = f"{kernel_name}_{source_hash}"
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", key) and len(key) <= _KEY_MAX:
            return key
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9_\-]+", "_", key)[: _KEY_MAX - 20]
        return f"k{readable}-{digest}"

    def _get_ptx_path(self, key: str) -> Path:
        """Find the file of a key."""
        return self._cache_dir / f"{key}.ptx"

    # --- the index ---

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and processes out, with the index as the last of them left it."""
        with self._lock, open(self._cache_dir / ".lock", "a+b") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # Closing the file gives the lock back.
            if self._index_stamp() != self._stamp:
                self._read_index()
            yield

    @property
    def _index_path(self) -> Path:
        return self._cache_dir / "index.json"

    def _index_stamp(self) -> tuple[int, ...] | None:
        try:
            found = self._index_path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read_index(self) -> None:
        self._stamp = self._index_stamp()
        self._entries = {}
        try:
            index = json.loads(self._index_path.read_bytes())
            items = list(index.items())
        except (OSError, ValueError, AttributeError, RecursionError):
            return
        for key, fields in items:
            entry = self._read_entry(key, fields)
            if entry is not None:
                self._entries[key] = entry

    def _read_entry(self, key: str, fields: Any) -> CacheEntry | None:
        """Check one entry of the index. Where its file lies follows from its key alone."""
        if not isinstance(fields, dict):
            return None
        name, source_hash = fields.get("kernel_name"), fields.get("source_hash")
        if not (isinstance(name, str) and isinstance(source_hash, str)):
            return None
        if self._get_cache_key(name, source_hash) != key:
            return None
        signature, metadata = fields.get("signature"), fields.get("metadata")
        try:
            return CacheEntry(
                kernel_name=name,
                source_hash=source_hash,
                signature=signature if isinstance(signature, str) else None,
                ptx_path=self._get_ptx_path(key),
                metadata=metadata if isinstance(metadata, dict) else {},
                created_timestamp=float(fields.get("created_timestamp", 0.0)),
                last_accessed=float(fields.get("last_accessed", 0.0)),
                hit_count=int(fields.get("hit_count", 0)),
            )
        except (TypeError, ValueError, OverflowError):
            return None

    def _write_index(self) -> None:
        index = {}
        for key, entry in self._entries.items():
            fields = dataclasses.asdict(entry)
            fields["ptx_path"] = None if entry.ptx_path is None else str(entry.ptx_path)
            index[key] = fields
        _replace(self._index_path, json.dumps(index, indent=1).encode())
        self._stamp = self._index_stamp()

    def _now(self) -> float:
        """Read the clock; later than any reading before, so that the order of use is known."""
        latest = max([self._latest, *(e.last_accessed for e in self._entries.values())])
        self._latest = max(time.time(), latest + 1e-6)
        return self._latest

    def _size(self, key: str) -> int:
        try:
            return self._get_ptx_path(key).stat().st_size
        except OSError:
            return 0

    def _drop(self, key: str) -> None:
        del self._entries[key]
        self._get_ptx_path(key).unlink(missing_ok=True)

    # --- use ---

    def store(
        self,
        kernel_name: str,
        source_hash: str,
        ptx: bytes | str,
        *,
        signature: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Keep a kernel; those used least recently go, if need be.

        Parameters
        ----------
        kernel_name, source_hash
            What it is; a kernel of the same two is replaced.
        ptx
            Its code; text is kept as UTF-8.
        signature, metadata
            What else to keep; the metadata must be fit for JSON.

        Returns
        -------
        bool
            Whether it was kept: not if the disk is full, or if it alone exceeds the cache's size.
        """
        try:
            data = ptx.encode() if isinstance(ptx, str) else bytes(ptx)
            json.dumps(metadata)
            if self._max_entries < 1 or len(data) > self._max_size_bytes:
                return False
            key = self._get_cache_key(kernel_name, source_hash)
            with self._locked():
                self._make_room(key, len(data))
                _replace(self._get_ptx_path(key), data)
                now = self._now()
                self._entries[key] = CacheEntry(
                    kernel_name=kernel_name,
                    source_hash=source_hash,
                    signature=signature,
                    ptx_path=self._get_ptx_path(key),
                    metadata=dict(metadata or {}),
                    created_timestamp=now,
                    last_accessed=now,
                )
                self._write_index()
        except Exception:
            return False
        return True

    def _make_room(self, key: str, size: int) -> None:
        """Drop the entries used least recently until one more of `size` bytes fits."""
        others = sorted((k for k in self._entries if k != key), key=self._last_accessed)
        total = sum(map(self._size, others))
        while others and (len(others) >= self._max_entries or total + size > self._max_size_bytes):
            oldest = others.pop(0)
            total -= self._size(oldest)
            self._drop(oldest)

    def _last_accessed(self, key: str) -> float:
        return self._entries[key].last_accessed

    def _find(self, kernel_name: str, source_hash: str) -> tuple[str, CacheEntry | None]:
        key = self._get_cache_key(kernel_name, source_hash)
        entry = self._entries.get(key)
        if entry is not None and (entry.kernel_name, entry.source_hash) != (
            kernel_name,
            source_hash,
        ):
            entry = None
        return key, entry

    def load(self, kernel_name: str, source_hash: str) -> bytes | None:
        """Get a kernel's code; None when it is not kept."""
        try:
            with self._locked():
                key, entry = self._find(kernel_name, source_hash)
                if entry is None:
                    return None
                try:
                    data = self._get_ptx_path(key).read_bytes()
                except OSError:
                    self._drop(key)
                    self._write_index()
                    return None
                entry.last_accessed = self._now()
                entry.hit_count += 1
                with contextlib.suppress(OSError):  # A disk that is full does not keep us from it.
                    self._write_index()
                return data
        except OSError:
            return None

    def contains(self, kernel_name: str, source_hash: str) -> bool:
        """Tell whether a kernel is kept."""
        try:
            with self._locked():
                key, entry = self._find(kernel_name, source_hash)
                return entry is not None and self._get_ptx_path(key).is_file()
        except OSError:
            return False

    def remove(self, kernel_name: str, source_hash: str) -> bool:
        """Drop a kernel; tells whether it was kept."""
        try:
            with self._locked():
                key, entry = self._find(kernel_name, source_hash)
                if entry is None:
                    return False
                self._drop(key)
                self._write_index()
                return True
        except OSError:
            return False

    def clear(self) -> int:
        """Drop all kernels; returns how many that were."""
        try:
            with self._locked():
                count = len(self._entries)
                for key in list(self._entries):
                    self._drop(key)
                self._write_index()
                return count
        except OSError:
            return 0

    def get_stats(self) -> dict[str, Any]:
        """Count what is kept.

        Returns
        -------
        dict
            `entries`, `max_entries`, `total_size_bytes`, `max_size_bytes`, `total_hits`,
            `cache_dir`.
        """
        with contextlib.suppress(OSError), self._locked():
            pass  # Reads the index if another process changed it.
        with self._lock:
            return {
                "entries": len(self._entries),
                "max_entries": self._max_entries,
                "total_size_bytes": sum(map(self._size, self._entries)),
                "max_size_bytes": self._max_size_bytes,
                "total_hits": sum(entry.hit_count for entry in self._entries.values()),
                "cache_dir": str(self._cache_dir),
            }

    def __repr__(self) -> str:
        size_kb = sum(map(self._size, list(self._entries))) / 1024
        return (
            f"KernelCache(entries={len(self._entries)}/{self._max_entries}, size={size_kb:.1f}KB)"
        )


_global_cache: KernelCache | None = None


def get_kernel_cache() -> KernelCache:
    """Get the process's cache."""
    global _global_cache
    if _global_cache is None:
        _global_cache = KernelCache()
    return _global_cache


def warmup_kernels(kernels: list[Any]) -> None:
    """Compile functions with the process's compiler before they are needed, ignoring errors."""
    from pydotcompute.compilation.compiler import get_compiler

    for kernel in kernels:
        with contextlib.suppress(Exception):
            get_compiler().compile(kernel)
