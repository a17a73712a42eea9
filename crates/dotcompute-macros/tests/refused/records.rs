use dotcompute_core::Message;

#[derive(Clone, Copy, Message)]
#[message(crate = "dotcompute_core", record)]
struct OfAnyLayout {
    value: f64,
}

#[derive(Clone, Copy, Message)]
#[message(crate = "dotcompute_core", record)]
#[repr(C, packed)]
struct Packed {
    flag: u8,
    value: f64,
}

#[derive(Clone, Copy, Message)]
#[message(crate = "dotcompute_core", record)]
#[repr(C)]
struct Generic<T> {
    value: T,
}

#[derive(Clone, Copy, Message)]
#[message(crate = "dotcompute_core", record)]
#[repr(C)]
struct Empty {}

fn main() {}
