use dotcompute_core::Message;

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct OfTheEnvelope {
    priority: u8,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Clash {
    a: u8,
    #[message(rename = "a")]
    b: u8,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct Misspelt {
    #[message(defualt)]
    a: u8,
}

#[derive(Message)]
#[message(crate = "dotcompute_core")]
struct SkippedAndRenamed {
    #[message(skip, rename = "b")]
    a: u8,
}

#[derive(Message)]
#[message(crate = "dotcompute_core", no_wire)]
struct WithoutWire {
    #[message(rename = "b")]
    a: u8,
}

fn main() {}
