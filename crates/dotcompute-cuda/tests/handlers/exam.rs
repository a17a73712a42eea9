//! Handlers in Rust that are compiled for the host, as a module of the tests, and for a device.

use dotcompute_core::Message;
use dotcompute_cuda::handler::{Context, Fault, Handled, Outcome};

/// What is asked, and about what.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Question {
    pub kind: u32,
    pub place: u32,
    pub a: i64,
    pub b: i64,
    pub x: f64,
    pub y: f32,
    pub rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Answer {
    pub number: i64,
    pub real: f64,
    pub short: f32,
    pub kind: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub struct Notes {
    pub count: u64,
    pub sum: i64,
    pub hash: u64,
    pub recent: [f32; 4],
    pub table: [[f64; 3]; 3],
    pub bytes: [u8; 16],
}

enum Task {
    Integers,
    Narrow(i16, u8),
    Reals { x: f64, y: f32 },
    Matrix([f64; 3]),
    Text(&'static str),
    Emit(u32),
    Wide(u128),
}

static NAMES: [&str; 3] = ["one", "two", "seventeen"];
static WEIGHTS: [i32; 5] = [3, -1, 4, 1, -5];

impl Task {
    fn of(question: &Question) -> Option<Self> {
        Some(match question.kind {
            0 => Self::Integers,
            1 => Self::Narrow(question.a as i16, question.b as u8),
            2 => Self::Reals { x: question.x, y: question.y },
            3 => Self::Matrix([question.x, question.a as f64, f64::from(question.y)]),
            4 => Self::Text(NAMES[question.place as usize % NAMES.len()]),
            5 => Self::Emit(question.rounds % 4),
            6 => Self::Wide(u128::from(question.a.cast_unsigned()) << 40 | 77),
            _ => return None,
        })
    }
}

/// Greatest common divisor, which calls itself.
#[inline(never)]
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn integers(a: i64, b: i64) -> i64 {
    let mut number = a.saturating_add(b).wrapping_mul(31) ^ a.rotate_left(b as u32 & 63);
    number = number.wrapping_add(a.checked_mul(b).unwrap_or(-1));
    number = number.wrapping_add(i64::from(a.leading_zeros()) << 3);
    number = number.wrapping_sub(i64::from(b.trailing_zeros() + a.count_ones()));
    number ^= a.swap_bytes().wrapping_shr(5) ^ b.reverse_bits();
    number = number.wrapping_add(a.clamp(-1000, 1000) * i64::from(a < b));
    match a.overflowing_sub(b) {
        (_, true) => number.wrapping_neg(),
        (less, false) => number.wrapping_add(less.max(7).min(b).abs_diff(3) as i64),
    }
}

fn narrow(a: i16, b: u8) -> i64 {
    let sum = a.saturating_sub(i16::from(b)).wrapping_mul(3);
    let byte = b.wrapping_mul(17).wrapping_add(a as u8) >> (b & 7);
    let signed = (byte as i8).saturating_add(100).wrapping_div(3);
    i64::from(sum) * 1000 + i64::from(byte) * 10 + i64::from(signed)
}

fn reals(x: f64, y: f32) -> (f64, f32) {
    // A product and a sum that a device would fuse.
    let polynomial = ((x * 0.1 + 0.2) * x - 0.3) * x + 1e-3;
    let whole = x as i32 as f64 + (y as u8) as f64 + (x as u64 as f64) * 0.5;
    let least = x.min(1.5).abs().copysign(-x);
    let short = y * 1.1 + (x as f32) / 3.0 - f32::from(y.is_nan());
    (polynomial + whole - least % 0.7, if x > f64::from(y) { short } else { -short })
}

pub fn exam(
    question: &Question,
    notes: &mut Notes,
    answer: &mut Answer,
    context: &mut Context,
) -> Outcome {
    let Some(task) = Task::of(question) else {
        return Err(context.fault(-9, "no such task"));
    };
    notes.count += 1;
    notes.hash = (notes.hash ^ question.a as u64).wrapping_mul(0x0100_0000_01b3);
    notes.recent[question.place as usize & 3] += question.y;
    answer.kind = question.kind;
    match task {
        Task::Integers => answer.number = integers(question.a, question.b),
        Task::Narrow(a, b) => answer.number = narrow(a, b),
        Task::Reals { x, y } => (answer.real, answer.short) = reals(x, y),
        Task::Matrix(vector) => {
            let mut product = [0.0; 3];
            for (row, out) in notes.table.iter().zip(&mut product) {
                *out = row.iter().zip(&vector).map(|(a, b)| a * b).sum();
            }
            notes.table.rotate_left(1);
            notes.table[0] = product.map(|it: f64| if it.abs() > 1e6 { it / 1e6 } else { it });
            // Of zeroes of both signs `max` may return either.
            answer.real = product.iter().copied().fold(-1.0, f64::max) + 0.0;
        }
        Task::Text(name) => {
            for (byte, letter) in notes.bytes.iter_mut().zip(name.bytes().cycle()) {
                *byte = byte.wrapping_add(letter);
            }
            answer.number = i64::from(name == "two") + 2 * name.len() as i64;
        }
        Task::Emit(count) => {
            for number in 0..count {
                context.emit(&Answer { number: number.into(), ..*answer })?;
            }
            return Ok(Handled::Done);
        }
        Task::Wide(wide) => {
            let wide = wide.wrapping_mul(wide | 1) / 1_000_003;
            answer.number = (wide >> 64) as i64 ^ wide as i64;
        }
    }
    let mut turn = 0;
    while turn < question.rounds {
        let weight = i64::from(WEIGHTS[(turn as usize + question.place as usize) % 5]);
        notes.sum = notes.sum.wrapping_mul(weight).wrapping_add(i64::from(turn));
        turn += 1;
    }
    answer.number ^= gcd(question.a.unsigned_abs(), question.b.unsigned_abs()) as i64;
    Ok(Handled::Reply)
}

/// What goes wrong, each in its way.
pub fn stumble(question: &Question, _: &mut (), answer: &mut Answer, _: &mut Context) -> Outcome {
    let numbers = [1_i64, 2, 3];
    answer.number = match question.kind {
        0 => numbers[question.place as usize], // the line of the index
        1 => question.a / question.b,          // the line of the division
        2 => numbers.iter().copied().find(|it| *it == question.a).unwrap(),
        3 => panic!("asked to, at {}", question.a),
        4 => return Err(Fault::code(-12)),
        5 => {
            let mut number = question.a;
            while number != 0 {
                number = number.wrapping_mul(3) | 1; // for ever
            }
            number
        }
        _ => question.a,
    };
    Ok(Handled::Reply)
}
