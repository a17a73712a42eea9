//! Images on disk.
//!
//! A file holds what its image was made of, whole, beside the image: it is compared, not trusted.
//! So a collision of names, another version or a damaged file is as if there were no file.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;

/// The folder of a cache. Any number of threads and processes may use it at once.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The first line of a file.
const MAGIC: &str = "dotcompute image 1";

impl Cache {
    /// The cache in `folder`, which is made when it is first written to.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The user's own: `$DOTCOMPUTE_CACHE`, or `dotcompute` in `$XDG_CACHE_HOME` or `~/.cache`; none
    /// where no variable says where.
    pub fn of_user() -> Option<Self> {
        let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = named("DOTCOMPUTE_CACHE").or_else(|| {
            let caches = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
            Some(caches?.join("dotcompute"))
        })?;
        Some(Self::at(folder.join("cuda")))
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image that was made of `key`, if it is there and whole.
    pub(crate) fn read(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key)).ok()?;
        let head = head(key, None);
        let rest = bytes.strip_prefix(head.as_bytes())?;
        let line = rest.iter().position(|byte| *byte == b'\n')?;
        let (image, said) = (&rest[line + 1..], &rest[..line]);
        if said != checksum(image).as_bytes() {
            return None;
        }
        let start = bytes.len() - image.len();
        Some(bytes.split_off(start))
    }

    /// Keeps `image`, made of `key`. Where that fails, the next build takes longer, and nothing
    /// else: a log says so.
    pub(crate) fn write(&self, key: &str, image: &[u8]) {
        if let Err(error) = self.try_write(key, image) {
            tracing::warn!(folder = %self.folder.display(), %error, "image not cached");
        }
    }

    fn try_write(&self, key: &str, image: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(key);
        // Under a name of its own first: a reader finds a whole file or none.
        let writer = thread::current().id();
        let draft = path.with_extension(format!("{}.{writer:?}.draft", process::id()));
        let mut bytes = head(key, Some(image)).into_bytes();
        bytes.extend_from_slice(image);
        fs::write(&draft, bytes)?;
        fs::rename(&draft, &path)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{:016x}.image", fnv1a(key.as_bytes())))
    }
}

/// All of a file before the image; without one, up to its checksum.
fn head(key: &str, image: Option<&[u8]>) -> String {
    let checksum = image.map_or_else(String::new, |image| checksum(image) + "\n");
    format!("{MAGIC}\n{}\n{key}{checksum}", key.len())
}

fn checksum(image: &[u8]) -> String {
    format!("{} {:016x}", image.len(), fnv1a(image))
}

/// The hash of Fowler, Noll and Vo: the same in every build, which the standard library's is not.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> Cache {
        let folder = env::temp_dir().join(format!("dotcompute-cache-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&folder); // what an earlier run may have left
        Cache::at(folder)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is() {
        let cache = fresh("read");
        assert_eq!(cache.read("key"), None);
        cache.write("key", b"image\nof two lines");
        assert_eq!(cache.read("key").as_deref(), Some(&b"image\nof two lines"[..]));
        assert_eq!(cache.read("key2"), None);
        cache.write("key", b"");
        assert_eq!(cache.read("key").as_deref(), Some(&b""[..]));
        fs::remove_dir_all(cache.folder()).unwrap();
    }

    #[test]
    fn a_damaged_or_foreign_file_is_as_if_it_were_not_there() {
        let cache = fresh("damaged");
        cache.write("key", b"image");
        let path = cache.path("key");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.read("key"), None, "cut off at {length}");
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(cache.read("key"), None);
        // As if another key had the same name.
        cache.write("other", b"image");
        fs::rename(cache.path("other"), &path).unwrap();
        assert_eq!(cache.read("key"), None);
        fs::remove_dir_all(cache.folder()).unwrap();
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let cache = Cache::at("/dev/null/nowhere");
        cache.write("key", b"image");
        assert_eq!(cache.read("key"), None);
    }
}
