//! `#[derive(Message)]` for dotcompute.
//!
//! `input` reads the struct and its attributes and refuses what makes no sense; `message`, `wire`
//! and `record` each write the implementation of one trait.

mod input;
mod message;
mod record;
mod wire;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

use input::Input;

/// Makes a type a message that ring kernels can be sent.
///
/// A struct with named fields, or without fields, also gets the wire format, and can be the field
/// of another message.
///
/// ```
/// use dotcompute_core::{Envelope, Message, wire};
///
/// #[derive(Debug, PartialEq, Message)]
/// # #[message(crate = "dotcompute_core")]
/// struct Point {
///     x: f64,
///     y: f64,
/// }
///
/// #[derive(Debug, PartialEq, Message)]
/// # #[message(crate = "dotcompute_core")]
/// #[message(name = "geometry.Path", priority = 200)]
/// struct Path {
///     points: Vec<Point>,
///     #[message(rename = "isClosed", default)]
///     is_closed: bool,
/// }
///
/// let path = Envelope::new(Path { points: vec![Point { x: 1.0, y: 2.0 }], is_closed: true });
/// assert_eq!(Path::TYPE_NAME, "geometry.Path");
/// assert_eq!(path.priority, 200);
/// let bytes = wire::encode(&path)?;
/// assert_eq!(wire::decode::<Path>(&bytes)?.message, path.message);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # On the type: `#[message(..)]`
///
/// - `name = "..."`: the type's name in the registry and on the wire, instead of the bare name of
///   the struct. All types that are made from one generic struct have the same name.
/// - `priority = N`: the default priority of such messages, 0 to 255, instead of 128.
/// - `no_wire`: without the wire format, for messages that never leave their process. Enums, tuple
///   structs and fields of any type are possible then.
/// - `record`: implements `Record` too: a `#[repr(C)]` struct of plain data that crosses threads,
///   processes and the bus without encoding. It must be `Clone` and `Copy`, and have no padding.
/// - `crate = "path"`: where `dotcompute` is found, if not at `::dotcompute`.
///
/// # On a field: `#[message(..)]`
///
/// - `default`: the field's `Default` if the wire lacks it.
/// - `rename = "..."`: its key on the wire.
/// - `skip`: not on the wire; its `Default` when read. For the padding of a record.
///
/// # An enum, inside one process
///
/// ```
/// use dotcompute_core::Message;
///
/// #[derive(Message)]
/// # #[message(crate = "dotcompute_core")]
/// #[message(no_wire)]
/// enum Command {
///     Start,
///     Run(Box<dyn Fn() + Send + Sync>),
/// }
/// assert_eq!(Command::TYPE_NAME, "Command");
/// # let _ = (Command::Start, Command::Run(Box::new(|| ())));
/// ```
#[proc_macro_derive(Message, attributes(message))]
pub fn derive_message(tokens: TokenStream) -> TokenStream {
    let derive_input = parse_macro_input!(tokens as DeriveInput);
    match Input::new(derive_input) {
        Ok(input) => {
            let mut output = message::implement(&input);
            if input.wire {
                output.extend(wire::implement(&input));
            }
            if input.record {
                output.extend(record::implement(&input));
            }
            output.into()
        }
        Err(error) => error.into_compile_error().into(),
    }
}
