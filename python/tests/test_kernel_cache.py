"""The cache of kernels on disk."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from pydotcompute.compilation import cache as cache_module
from pydotcompute.compilation.cache import CacheEntry, KernelCache, get_kernel_cache


@pytest.fixture
def cache(tmp_path):
    return KernelCache(tmp_path / "cache")


def test_entry():
    entry = CacheEntry("k", "h", None)
    assert (entry.ptx_path, entry.metadata, entry.hit_count) == (None, {}, 0)
    assert (entry.created_timestamp, entry.last_accessed) == (0.0, 0.0)


def test_a_new_cache(cache, tmp_path):
    assert cache._cache_dir == tmp_path / "cache"
    assert cache._cache_dir.is_dir()
    assert cache._max_entries == 128
    assert cache._max_size_bytes == 256 * 2**20
    assert cache._entries == {}
    assert repr(cache) == "KernelCache(entries=0/128, size=0.0KB)"
    assert cache.get_stats() == {
        "entries": 0,
        "max_entries": 128,
        "total_size_bytes": 0,
        "max_size_bytes": 256 * 2**20,
        "total_hits": 0,
        "cache_dir": str(tmp_path / "cache"),
    }


def test_store_and_load(cache):
    assert cache.store("k", "h", b"code", signature="s", metadata={"a": 1}) is True
    assert cache.load("k", "h") == b"code"
    assert cache.load("k", "h") == b"code"
    entry = cache._entries[cache._get_cache_key("k", "h")]
    assert (entry.signature, entry.metadata, entry.hit_count) == ("s", {"a": 1}, 2)
    assert entry.last_accessed > entry.created_timestamp
    assert cache.store("k", "text", "größer")
    assert cache.load("k", "text") == "größer".encode()
    assert cache.load("k", "x") is None
    assert cache.contains("k", "h") is True
    assert cache.contains("k", "x") is False
    assert cache.get_stats()["total_hits"] == 3
    assert cache.get_stats()["total_size_bytes"] == 4 + len("größer".encode())
    assert cache.remove("k", "h") is True
    assert cache.remove("k", "h") is False
    assert cache.clear() == 1
    assert list(cache._cache_dir.glob("*.ptx")) == []


def test_files(cache):
    cache.store("k", "abc", b"code")
    key = cache._get_cache_key("k", "abc")
    assert key == "k_abc"
    assert cache._get_ptx_path(key) == cache._cache_dir / "k_abc.ptx"
    assert cache._get_ptx_path(key).read_bytes() == b"code"
    index = json.loads((cache._cache_dir / "index.json").read_text())
    assert index[key]["ptx_path"] == str(cache._get_ptx_path(key))
    assert index[key]["kernel_name"] == "k"


def test_a_new_instance_sees_earlier_entries(cache):
    cache.store("k", "h", b"code", metadata={"a": [1]})
    cache.load("k", "h")
    again = KernelCache(cache._cache_dir)
    assert again.contains("k", "h")
    assert again._entries["k_h"].hit_count == 1
    assert again._entries["k_h"].metadata == {"a": [1]}
    assert again.load("k", "h") == b"code"


@pytest.mark.parametrize(
    "text", ["", "not json", "[1]", "null", '{"k_h": 3}', '{"k_h": {"kernel_name": 1}}', "[" * 9999]
)
def test_f7_an_index_that_is_none_is_an_empty_cache(cache, text):
    cache.store("k", "h", b"code")
    (cache._cache_dir / "index.json").write_text(text)
    again = KernelCache(cache._cache_dir)
    assert again._entries == {}
    assert again.store("k", "h", b"new")
    assert again.load("k", "h") == b"new"


def test_f7_the_index_cannot_name_other_files(cache, tmp_path):
    secret = tmp_path / "secret.ptx"
    secret.write_bytes(b"secret")
    cache.store("k", "h", b"code")
    path = cache._cache_dir / "index.json"
    index = json.loads(path.read_text())
    index["k_h"]["ptx_path"] = str(secret)
    index["../secret"] = dict(index["k_h"], kernel_name="../secret", source_hash="")
    path.write_text(json.dumps(index))
    again = KernelCache(cache._cache_dir)
    assert again.load("k", "h") == b"code"
    assert list(again._entries) == ["k_h"]
    again.clear()
    assert secret.read_bytes() == b"secret"


def test_a_file_that_is_gone_is_a_miss(cache):
    cache.store("k", "h", b"code")
    cache._get_ptx_path("k_h").unlink()
    assert cache.load("k", "h") is None
    assert cache._entries == {}


def test_f8_contains_is_false_for_a_file_that_is_gone(cache):
    cache.store("k", "h", b"code")
    cache._get_ptx_path("k_h").unlink()
    assert cache.contains("k", "h") is False


@pytest.mark.parametrize(
    "name",
    ["../../escape", "/etc/passwd", "a/b", "..", ".hidden", "a\0b", "nul\n", "x" * 500, "<lambda>"],
)
def test_f5_any_name_is_safe(cache, tmp_path, name):
    assert cache.store(name, "h", b"code") is True
    assert cache.load(name, "h") == b"code"
    (file,) = tmp_path.rglob("*.ptx")
    assert file.parent == cache._cache_dir
    assert KernelCache(cache._cache_dir).load(name, "h") == b"code"


def test_f5_names_that_look_alike_do_not_collide(cache):
    names = ["a/b", "a_b", "a\\b", "a:b"]
    for name in names:
        assert cache.store(name, "h", name)
    for name in names:
        assert cache.load(name, "h") == name.encode()
    assert cache.store("x_y", "z", b"1")
    assert cache.load("x", "y_z") is None  # The same key, another kernel.


def test_least_recently_used_goes_first(tmp_path):
    cache = KernelCache(tmp_path, max_entries=3)
    for name in ("k1", "k2", "k3"):
        cache.store(name, "h", b"code")
    cache.load("k1", "h")
    cache.store("k4", "h", b"code")
    kept = [name for name in ("k1", "k2", "k3", "k4") if cache.contains(name, "h")]
    assert kept == ["k1", "k3", "k4"]
    assert len(list(tmp_path.glob("*.ptx"))) == 3


def test_the_size_is_bounded(tmp_path):
    cache = KernelCache(tmp_path, max_size_mb=1)
    for i in range(3):
        assert cache.store(f"k{i}", "h", b"x" * (512 * 1024))
    assert len(cache._entries) <= 2
    assert cache.get_stats()["total_size_bytes"] <= 2**20
    assert cache.contains("k2", "h")


@pytest.mark.parametrize("max_entries", [0, -1])
def test_f6_a_cache_of_no_entries_keeps_nothing_and_returns(tmp_path, max_entries):
    cache = KernelCache(tmp_path, max_entries=max_entries)
    assert cache.store("k", "h", b"code") is False
    assert cache.load("k", "h") is None


def test_f8_storing_again_drops_no_other(tmp_path):
    cache = KernelCache(tmp_path, max_entries=2)
    cache.store("k1", "h", b"1")
    cache.store("k2", "h", b"2")
    cache.store("k2", "h", b"3")
    assert cache.load("k1", "h") == b"1"
    assert cache.load("k2", "h") == b"3"


def test_f8_what_alone_is_too_large_is_refused(tmp_path):
    cache = KernelCache(tmp_path, max_size_mb=1)
    cache.store("k1", "h", b"1")
    assert cache.store("k2", "h", b"x" * (2**20 + 1)) is False
    assert cache.contains("k1", "h")
    assert not cache.contains("k2", "h")


def test_failures_are_false(cache, monkeypatch):
    assert cache.store("k", "h", b"code", metadata={"a": object()}) is False
    assert cache.store("k", "h", 3.5) is False
    assert list(cache._cache_dir.glob("*.ptx")) == []

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cache_module.os, "replace", fail)
    assert cache.store("k", "h", b"code") is False
    monkeypatch.undo()
    assert list(cache._cache_dir.glob(".write-*")) == []
    cache._cache_dir = Path("/no/such/folder")
    assert cache.store("k", "h", b"code") is False
    assert cache.load("k", "h") is None


def test_f7_two_caches_on_one_folder_see_each_other(cache):
    other = KernelCache(cache._cache_dir)
    cache.store("k1", "h", b"1")
    assert other.load("k1", "h") == b"1"
    other.store("k2", "h", b"2")
    assert cache.load("k2", "h") == b"2"
    assert cache.remove("k1", "h")
    assert other.contains("k1", "h") is False
    assert other.get_stats()["entries"] == 1


WRITER = """
import sys
from pydotcompute.compilation.cache import KernelCache
cache = KernelCache(sys.argv[1])
for i in range(40):
    name = f"{sys.argv[2]}{i}"
    assert cache.store(name, "h", name * 100)
    assert cache.store("shared", "h", "s" * 1000)
    assert cache.load(name, "h") == (name * 100).encode()
    assert cache.load("shared", "h") == b"s" * 1000
"""


def test_f7_two_processes_at_once_lose_nothing(cache):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(cache._cache_dir), name])
        for name in "ab"
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert cache.get_stats()["entries"] == 81
    for name in "ab":
        for i in range(40):
            assert cache.load(f"{name}{i}", "h") == f"{name}{i}".encode() * 100


def test_threads_share_a_cache(cache):
    failed = []

    def work(name):
        try:
            for i in range(20):
                assert cache.store(f"{name}{i}", "h", b"x")
                assert cache.load(f"{name}{i}", "h") == b"x"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert cache.get_stats()["entries"] == 60


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cache_module, "_global_cache", None)
    return tmp_path


def test_f7_the_default_folder_is_this_users_alone(temporary):
    cache = get_kernel_cache()
    assert get_kernel_cache() is cache
    assert "pydotcompute_cache" in str(cache._cache_dir)
    assert str(os.getuid()) in cache._cache_dir.name
    assert cache._cache_dir.parent == temporary
    assert stat.S_IMODE(cache._cache_dir.stat().st_mode) == 0o700
    cache._cache_dir.chmod(0o777)
    assert stat.S_IMODE(KernelCache()._cache_dir.stat().st_mode) == 0o700


def test_f7_a_folder_that_someone_else_prepared_is_not_used(temporary, monkeypatch):
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    planted = temporary / f"pydotcompute_cache_{os.getuid()}"
    planted.symlink_to(elsewhere)
    first = KernelCache()
    assert first._cache_dir not in (planted, elsewhere)
    assert "pydotcompute_cache" in str(first._cache_dir)
    planted.unlink()
    planted.mkdir()
    monkeypatch.setattr(cache_module.os, "getuid", lambda: planted.stat().st_uid + 1)
    (temporary / f"pydotcompute_cache_{os.getuid()}").mkdir()
    second = KernelCache()
    assert second._cache_dir.name not in {
        f"pydotcompute_cache_{planted.stat().st_uid}",
        f"pydotcompute_cache_{os.getuid()}",
    }
    assert stat.S_IMODE(second._cache_dir.stat().st_mode) == 0o700
