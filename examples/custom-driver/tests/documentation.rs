//! What `docs/writing-a-driver.md` shows is what this example does.

#[test]
fn code_in_the_documentation_is_from_this_example() {
    let document = include_str!("../../../docs/writing-a-driver.md");
    let sources = [include_str!("../src/lib.rs"), include_str!("conformance.rs")];
    let shown: Vec<_> = document.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!shown.is_empty());
    for code in shown {
        assert!(sources.iter().any(|source| source.contains(code)), "not in the example:\n{code}");
    }
}
