//! What the derive macro refuses, and what it says then.

#[test]
fn misuse_is_refused_with_a_reason() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
