//! Handlers in Rust whose machine code is looked at.

use dotcompute_core::Message;
use dotcompute_cuda::handler::{Context, Handled, Outcome};

#[derive(Clone, Copy, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Amount {
    pub value: i64,
}

#[derive(Clone, Copy, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Entry {
    pub kind: u32,
    pub place: u32,
    pub amount: i64,
    pub rate: f64,
}

#[derive(Clone, Copy, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Book {
    pub balance: i64,
    pub interest: f64,
    pub accounts: [i64; 8],
}

enum Posting {
    Deposit(i64),
    Withdrawal { amount: i64 },
    Interest(f64),
}

pub fn tally(
    message: &Amount,
    total: &mut Amount,
    reply: &mut Amount,
    _: &mut Context,
) -> Outcome {
    total.value += message.value;
    *reply = *total;
    Ok(Handled::Reply)
}

fn posting(entry: &Entry) -> Option<Posting> {
    match entry.kind {
        0 => Some(Posting::Deposit(entry.amount)),
        1 => Some(Posting::Withdrawal { amount: entry.amount }),
        2 => Some(Posting::Interest(entry.rate)),
        _ => None,
    }
}

pub fn ledger(
    entry: &Entry,
    book: &mut Book,
    reply: &mut Entry,
    context: &mut Context,
) -> Outcome {
    let account = &mut book.accounts[entry.place as usize];
    match posting(entry) {
        Some(Posting::Deposit(amount)) => *account = account.saturating_add(amount),
        Some(Posting::Withdrawal { amount }) if amount > *account => {
            return Err(context.fault(-7, "not so much"));
        }
        Some(Posting::Withdrawal { amount }) => *account -= amount,
        Some(Posting::Interest(rate)) => book.interest = book.interest * rate + entry.rate,
        None => {
            context.log(30, "no such entry");
            return Ok(Handled::Done);
        }
    }
    let mut left = entry.amount;
    while left > 0 {
        let part = left.min(1000);
        // In place: what a variable has, and is copied word by word, lies on a stack.
        *reply = Entry { amount: part, ..*entry };
        context.emit(reply)?;
        left -= part * 3;
    }
    book.balance = book.accounts.iter().sum();
    *reply = Entry { amount: book.balance, rate: book.interest, ..*entry };
    Ok(Handled::Reply)
}
