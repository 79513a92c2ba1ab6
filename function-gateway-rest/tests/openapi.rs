//! The description of the API is what the file in the repository says.
#![allow(missing_docs, reason = "a test")]

use std::path::Path;

/// Writes the file where the variable `UPDATE_GOLDEN` is set.
#[test]
fn the_description_is_the_golden_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let document = function_gateway_rest::openapi_json();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, document).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(
        document == golden,
        "openapi.json is out of date: run this test with UPDATE_GOLDEN=1 and look at what changes"
    );
}
