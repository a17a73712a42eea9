use dotcompute_core::Message;

#[derive(Message)]
#[message(crate = "dotcompute_core")]
enum Command {
    Start,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Pair(f64, f64);

#[derive(Message)]
#[message(crate = "dotcompute_core")]
union Bits {
    integer: u32,
    float: f32,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Borrowed<'a> {
    text: &'a str,
}

fn main() {}
