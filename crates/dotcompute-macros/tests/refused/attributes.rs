use dotcompute_core::Message;

#[derive(Message)]
#[message(crate = "dotcompute_core", priority = 256)]
struct TooUrgent {
    value: f64,
}

#[derive(Message)]
#[message(crate = "dotcompute_core", priority = "high")]
struct NotANumber {
    value: f64,
}

#[derive(Message)]
#[message(crate = "dotcompute_core", prio = 3)]
struct Misspelt {
    value: f64,
}

#[derive(Message)]
#[message(crate = "dotcompute_core", name = "")]
struct Nameless {
    value: f64,
}

#[derive(Message)]
#[message(crate = "dotcompute_core", no_wire)]
#[message(no_wire)]
struct Twice {
    value: f64,
}

fn main() {}
