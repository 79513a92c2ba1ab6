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

#[test]
fn no_two_operations_have_one_name() {
    let document: serde_json::Value = serde_json::from_str(function_gateway_rest::openapi_json()).unwrap();
    let items = document["paths"].as_object().unwrap().values();
    let operations = items.flat_map(|item| item.as_object().unwrap().values());
    let mut names: Vec<_> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
