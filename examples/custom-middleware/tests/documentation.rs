//! What `docs/writing-middleware.md` shows is what this example does.

#[test]
fn code_in_the_documentation_is_from_this_example() {
    let document = include_str!("../../../docs/writing-middleware.md");
    let sources = [
        include_str!("../src/ask_again.rs"),
        include_str!("../src/call_token.rs"),
        include_str!("../src/content_types.rs"),
        include_str!("../src/main.rs"),
        include_str!("../src/rename_fields.rs"),
        include_str!("middleware.rs"),
    ];
    let shown: Vec<_> = document.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!shown.is_empty());
    for code in shown {
        assert!(sources.iter().any(|source| source.contains(code)), "not in the example:\n{code}");
    }
}
