//! What a kernel and its test tell each other while the kernel runs, in this process or in another.
//!
//! Closures would share channels and locks with the test. A kernel that is known by name gets its
//! arguments as bytes, so what it shares with the test are numbers: those of a [`Gate`], of a
//! [`Tell`] and of a [`Slate`]. The things themselves are in the process of the test; a kernel in a
//! child asks for them there, each time by a connection to a socket without a file.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, channel as std_channel};
use std::sync::{Arc, LazyLock, Mutex};

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait;
use dotcompute::{BoxError, MessageId};
use tokio::sync::Semaphore;

/// What crosses the border between two processes, in bytes.
pub trait Portable: Sized + Send + 'static {
    /// Appends it to `out`.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes what was put first off the front; `None` if it is none.
    fn take(from: &mut &[u8]) -> Option<Self>;

    /// Its bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// What has exactly these bytes.
    ///
    /// # Errors
    ///
    /// If nothing of this type has.
    fn from_bytes(mut bytes: &[u8]) -> Result<Self, BoxError> {
        let value = Self::take(&mut bytes).filter(|_| bytes.is_empty());
        value.ok_or_else(|| format!("not the bytes of a {}", std::any::type_name::<Self>()).into())
    }
}

macro_rules! portable_numbers {
    ($($number:ty),*) => {
        $(impl Portable for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                from.split_off(..size_of::<Self>())?.try_into().ok().map(Self::from_le_bytes)
            }
        })*
    };
}

portable_numbers!(u8, u32, u64, u128, i64);

/// Makes a struct [`Portable`], field by field.
#[macro_export]
macro_rules! portable {
    ($name:ident { $($field:tt),* $(,)? }) => {
        impl $crate::Portable for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::Portable::put(&self.$field, out);)*
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: $crate::Portable::take(from)?),* })
            }
        }
    };
}

impl Portable for () {
    fn put(&self, _out: &mut Vec<u8>) {}

    fn take(_from: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

impl Portable for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        u8::take(from).map(|byte| byte != 0)
    }
}

impl Portable for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let length = usize::try_from(u64::take(from)?).ok()?;
        Self::from_utf8(from.split_off(..length)?.to_vec()).ok()
    }
}

impl Portable for MessageId {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_u128().put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        u128::take(from).map(Self::from_u128)
    }
}

impl<T: Portable> Portable for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        match bool::take(from)? {
            true => T::take(from).map(Some),
            false => Some(None),
        }
    }
}

macro_rules! portable_tuples {
    ($(($($part:ident $position:tt),*))*) => {
        $(impl<$($part: Portable),*> Portable for ($($part,)*) {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$position.put(out);)*
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                Some(($($part::take(from)?,)*))
            }
        })*
    };
}

portable_tuples! { (A 0, B 1) (A 0, B 1, C 2) }

/// Everything that tests share with their kernels, by its number. Only in the process of the tests;
/// it is kept as long as that.
#[derive(Default)]
struct Shared {
    last: u64,
    tells: HashMap<u64, Deliver>,
    gates: HashMap<u64, Arc<Semaphore>>,
    slates: HashMap<u64, u64>,
}

/// Hands bytes to a receiver; false if nobody listens.
type Deliver = Box<dyn FnMut(&[u8]) -> bool + Send>;

static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

impl Shared {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// The kernel's end of a channel.
pub struct Tell<T>(u64, PhantomData<fn(T)>);

impl<T> Clone for Tell<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Tell<T> {}

impl<T> std::fmt::Debug for Tell<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tell({})", self.0)
    }
}

impl<T: Portable> Portable for Tell<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        u64::take(from).map(|number| Self(number, PhantomData))
    }
}

/// A channel from a kernel to its test.
pub fn channel<T: Portable>() -> (Tell<T>, Receiver<T>) {
    let (tell, told) = std_channel();
    let mut shared = lock(&SHARED);
    let number = shared.number();
    let deliver = move |bytes: &[u8]| match T::from_bytes(bytes) {
        Ok(value) => tell.send(value).is_ok(),
        Err(error) => panic!("told {error}"),
    };
    shared.tells.insert(number, Box::new(deliver));
    (Tell(number, PhantomData), told)
}

impl<T: Portable> Tell<T> {
    /// Tells the test, which can know when this returns.
    ///
    /// # Errors
    ///
    /// If the test does not listen any more.
    pub fn send(&self, value: T) -> Result<(), BoxError> {
        match far::ask(TELL, self.0, value.bytes())? {
            Some(answer) => bool::from_bytes(&answer)?,
            None => deliver(self.0, &value.bytes()),
        }
        .then_some(())
        .ok_or_else(|| "the test has stopped to listen".into())
    }
}

fn deliver(number: u64, bytes: &[u8]) -> bool {
    let mut shared = lock(&SHARED);
    let Some(deliver) = shared.tells.get_mut(&number) else { return false };
    let heard = deliver(bytes);
    if !heard {
        shared.tells.remove(&number);
    }
    heard
}

/// Lets whoever passes it wait until it is opened, a given number of times.
#[derive(Clone, Copy, Debug)]
pub struct Gate(u64);

impl Default for Gate {
    fn default() -> Self {
        let mut shared = lock(&SHARED);
        let number = shared.number();
        shared.gates.insert(number, Arc::new(Semaphore::new(0)));
        Self(number)
    }
}

impl Portable for Gate {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        u64::take(from).map(Self)
    }
}

impl Gate {
    fn semaphore(self) -> Arc<Semaphore> {
        let found = lock(&SHARED).gates.get(&self.0).map(Arc::clone);
        found.expect("gates are kept")
    }

    /// Lets `times` passes through. For the test.
    pub fn open(self, times: usize) {
        self.semaphore().add_permits(times);
    }

    /// Lets every pass through, from now on. For the test.
    pub fn remove(self) {
        self.semaphore().close();
    }

    /// Waits until the gate is open for this pass.
    pub async fn pass(self) {
        match far::is_child() {
            true => far::pass(self.0).await,
            false => {
                if let Ok(permit) = self.semaphore().acquire().await {
                    permit.forget();
                }
            }
        }
    }

    /// Waits on the calling thread, which is blocked.
    pub fn pass_blocking(self) {
        wait::block_on(self.pass());
    }
}

/// A number that outlives the runs of a kernel; 0 at first.
#[derive(Clone, Copy, Debug)]
pub struct Slate(u64);

impl Default for Slate {
    fn default() -> Self {
        let mut shared = lock(&SHARED);
        let number = shared.number();
        shared.slates.insert(number, 0);
        Self(number)
    }
}

impl Portable for Slate {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        u64::take(from).map(Self)
    }
}

impl Slate {
    /// Writes `number` if it is larger than what is written there. Returns what was there before.
    ///
    /// # Errors
    ///
    /// If the process of the test cannot be reached.
    pub fn raise(self, number: u64) -> Result<u64, BoxError> {
        match far::ask(RAISE, self.0, number.bytes())? {
            Some(answer) => u64::from_bytes(&answer),
            None => Ok(raise(self.0, number)),
        }
    }

    /// Counts on by one: 1 for the first time.
    ///
    /// # Errors
    ///
    /// If the process of the test cannot be reached.
    pub fn count(self) -> Result<u64, BoxError> {
        match far::ask(COUNT, self.0, Vec::new())? {
            Some(answer) => u64::from_bytes(&answer),
            None => Ok(count(self.0)),
        }
    }
}

fn raise(number: u64, to: u64) -> u64 {
    let mut shared = lock(&SHARED);
    let slate = shared.slates.entry(number).or_default();
    let before = *slate;
    *slate = before.max(to);
    before
}

fn count(number: u64) -> u64 {
    let mut shared = lock(&SHARED);
    let slate = shared.slates.entry(number).or_default();
    *slate += 1;
    *slate
}

/// What a child asks for.
const TELL: u8 = 0;
const PASS: u8 = 1;
const RAISE: u8 = 2;
const COUNT: u8 = 3;

#[cfg(target_os = "linux")]
pub(crate) mod far {
    //! The way between a child and the process of the tests: for each question a connection.

    use std::io::{self, Read, Write};
    use std::net::Shutdown;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::sync::OnceLock;

    use dotcompute::BoxError;

    use super::{COUNT, Gate, PASS, Portable, RAISE, TELL, count, deliver, raise, wait};

    /// Tells a child where the tests are.
    const TESTS: &str = "DOTCOMPUTE_CONFORMANCE_TESTS";

    /// Where the tests are, for a child; `None` in their own process.
    fn tests() -> Option<&'static str> {
        static NAME: OnceLock<Option<String>> = OnceLock::new();
        let name = NAME.get_or_init(|| match dotcompute::process::is_child() {
            true => std::env::var(TESTS).ok(),
            false => None,
        });
        name.as_deref()
    }

    pub(super) fn is_child() -> bool {
        tests().is_some()
    }

    /// What the tests answer; `None` in their own process.
    pub(super) fn ask(what: u8, number: u64, with: Vec<u8>) -> Result<Option<Vec<u8>>, BoxError> {
        let Some(name) = tests() else { return Ok(None) };
        let mut stream = UnixStream::connect_addr(&address(name)?)?;
        let mut question = what.bytes();
        number.put(&mut question);
        question.extend(with);
        stream.write_all(&question)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(Some(answer))
    }

    /// Waits at a gate without blocking the thread that polls it.
    pub(super) async fn pass(number: u64) {
        let (tell, passed) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            // Without the tests there is nothing to wait for.
            let _ = ask(PASS, number, Vec::new());
            let _ = tell.send(());
        });
        let _ = passed.await;
    }

    fn address(name: &str) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(name)
    }

    /// Answers children from now on: what their environment has to say.
    pub(crate) fn answer_children() -> io::Result<(&'static str, &'static str)> {
        static NAME: OnceLock<Result<String, String>> = OnceLock::new();
        let name = NAME.get_or_init(|| {
            let name = format!("dotcompute-conformance-{}", std::process::id());
            let listen = || UnixListener::bind_addr(&address(&name)?);
            let listener = listen().map_err(|error| error.to_string())?;
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || answer(stream));
                }
            });
            Ok(name)
        });
        match name {
            Ok(name) => Ok((TESTS, name)),
            Err(error) => Err(io::Error::other(error.clone())),
        }
    }

    /// Of a child that died meanwhile nothing is expected.
    fn answer(mut stream: UnixStream) -> io::Result<()> {
        let mut question = Vec::new();
        stream.read_to_end(&mut question)?;
        let mut rest = &question[..];
        let (Some(what), Some(number)) = (u8::take(&mut rest), u64::take(&mut rest)) else {
            return Ok(());
        };
        let answer = match what {
            TELL => deliver(number, rest).bytes(),
            PASS => {
                wait::block_on(Gate(number).pass());
                ().bytes()
            }
            RAISE => u64::from_bytes(rest).map_or(Vec::new(), |to| raise(number, to).bytes()),
            COUNT => count(number).bytes(),
            _ => Vec::new(),
        };
        // One that was killed while it waited has not passed.
        let sent = stream.write_all(if what == PASS { &[1] } else { &answer });
        if what == PASS && sent.is_err() {
            Gate(number).open(1);
        }
        sent
    }
}

/// Elsewhere there are no children.
#[cfg(not(target_os = "linux"))]
pub(crate) mod far {
    use dotcompute::BoxError;

    pub(super) fn is_child() -> bool {
        false
    }

    pub(super) fn ask(_: u8, _: u64, _: Vec<u8>) -> Result<Option<Vec<u8>>, BoxError> {
        Ok(None)
    }

    pub(super) async fn pass(_number: u64) {}
}
