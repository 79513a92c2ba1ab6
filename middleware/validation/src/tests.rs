use std::fmt::Write as _;

use function_gateway_core::{
    Delivery, ErrorClass, FunctionId, FunctionKey, Generation, ProcessWorkload, RevisionReason, Timestamp,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const CANARY: &str = "canary-3f9a1c";

const DIALECTS: [&str; 5] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-04/schema#",
];
const D2020: &[usize] = &[0];
const D2019: &[usize] = &[1];
const FROM_2019: &[usize] = &[0, 1];
const FROM_7: &[usize] = &[0, 1, 2];
const FROM_6: &[usize] = &[0, 1, 2, 3];
const UP_TO_2019: &[usize] = &[1, 2, 3, 4];
const UP_TO_7: &[usize] = &[2, 3, 4];
const D4: &[usize] = &[4];
const ALL: &[usize] = &[0, 1, 2, 3, 4];

fn spec() -> FunctionSpec {
    FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat"))
}

fn with_input(schema: Value) -> FunctionSpec {
    spec().with_input_schema(schema)
}

fn revision(spec: FunctionSpec) -> Arc<Revision> {
    let key = FunctionKey::new("acme".parse().unwrap(), "f".parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let generation = Generation::new(1).unwrap();
    Arc::new(Revision::new(key, FunctionId::generate(), generation, spec, created, RevisionReason::Created))
}

fn admit(schema: Value) -> Vec<Violation> {
    Validation::default().admit(&with_input(schema), &Settings::none())
}

fn check(schema: Value, document: &Value) -> Result<()> {
    Validation::default().check_payload(&with_input(schema), document.to_string().as_bytes())
}

fn places(error: &Error) -> Vec<(&str, &str)> {
    error.violations().iter().map(|found| (&*found.pointer, found.schema_pointer.as_deref().unwrap())).collect()
}

/// The only violation of a schema.
fn refused(schema: Value) -> (String, String) {
    let mut violations = admit(schema);
    assert_eq!(violations.len(), 1, "{violations:?}");
    let Violation { pointer, reason, .. } = violations.remove(0);
    (pointer, reason)
}

#[test]
fn every_dialect_has_its_keywords() {
    let table = [
        // Types.
        (ALL, json!({"type": "string"}), json!("x"), json!(1)),
        (ALL, json!({"type": ["integer", "null"]}), json!(null), json!(1.5)),
        (FROM_6, json!({"type": "integer"}), json!(1.0), json!("1")),
        (D4, json!({"type": "integer"}), json!(1), json!(1.0)),
        (ALL, json!({"enum": [1, "a", {"b": null}]}), json!({"b": null}), json!("b")),
        (FROM_6, json!({"const": [1, 2]}), json!([1, 2.0]), json!([2, 1])),
        // Numbers.
        (ALL, json!({"minimum": 1, "maximum": 3}), json!(3), json!(3.5)),
        (FROM_6, json!({"exclusiveMinimum": 1, "exclusiveMaximum": 3}), json!(2), json!(1)),
        (D4, json!({"minimum": 1, "exclusiveMinimum": true}), json!(2), json!(1)),
        (ALL, json!({"multipleOf": 0.5}), json!(1.5), json!(1.25)),
        // Strings.
        (ALL, json!({"minLength": 2, "maxLength": 3}), json!("äöü"), json!("ä")),
        (ALL, json!({"pattern": "^a+$"}), json!("aa"), json!("ab")),
        (UP_TO_7, json!({"format": "ipv4"}), json!("127.0.0.1"), json!("127.0.0")),
        (D2020, json!({"type": "string", "format": "ipv4"}), json!("no address"), json!(4)),
        (&[2], json!({"contentEncoding": "base64"}), json!("YQ=="), json!("~")),
        // Arrays.
        (ALL, json!({"minItems": 1, "maxItems": 2}), json!([1]), json!([])),
        (ALL, json!({"uniqueItems": true}), json!([1, "1"]), json!([{"a": 1}, {"a": 1.0}])),
        (ALL, json!({"items": {"type": "null"}}), json!([null]), json!([null, 0])),
        (
            UP_TO_2019,
            json!({"items": [{}, {"type": "null"}], "additionalItems": false}),
            json!([1]),
            json!([1, null, 1]),
        ),
        (D2020, json!({"prefixItems": [{}, {"type": "null"}], "items": false}), json!([1]), json!([1, null, 1])),
        (FROM_6, json!({"contains": {"const": 1}}), json!([0, 1]), json!([0])),
        (FROM_2019, json!({"contains": {"const": 1}, "maxContains": 1}), json!([1]), json!([1, 1])),
        (FROM_2019, json!({"contains": {"const": 1}, "minContains": 2}), json!([1, 1]), json!([1])),
        (D2020, json!({"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": false}), json!([1]), json!([1, 2])),
        (D2019, json!({"allOf": [{"items": [{}]}], "unevaluatedItems": false}), json!([1]), json!([1, 2])),
        // Objects.
        (ALL, json!({"required": ["a"]}), json!({"a": null}), json!({"b": null})),
        (ALL, json!({"minProperties": 1, "maxProperties": 1}), json!({"a": 1}), json!({"a": 1, "b": 1})),
        (ALL, json!({"properties": {"a": {"type": "null"}}}), json!({"b": 1}), json!({"a": 1})),
        (ALL, json!({"patternProperties": {"^x": {"type": "null"}}}), json!({"a": 1}), json!({"xa": 1})),
        (
            ALL,
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": false}),
            json!({"a": 1, "x": 1}),
            json!({"b": 1}),
        ),
        (FROM_6, json!({"propertyNames": {"maxLength": 1}}), json!({"a": 1}), json!({"ab": 1})),
        (UP_TO_7, json!({"dependencies": {"a": ["b"]}}), json!({"b": 1}), json!({"a": 1})),
        (FROM_2019, json!({"dependentRequired": {"a": ["b"]}}), json!({"b": 1}), json!({"a": 1})),
        (FROM_2019, json!({"dependentSchemas": {"a": {"required": ["b"]}}}), json!({}), json!({"a": 1})),
        (
            FROM_2019,
            json!({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": false}),
            json!({"a": 1}),
            json!({"b": 1}),
        ),
        // Combinations.
        (ALL, json!({"allOf": [{"minimum": 1}, {"maximum": 2}]}), json!(1), json!(3)),
        (ALL, json!({"anyOf": [{"type": "null"}, {"maximum": 2}]}), json!(1), json!(3)),
        (ALL, json!({"oneOf": [{"minimum": 1}, {"maximum": 2}]}), json!(0), json!(1)),
        (ALL, json!({"not": {"type": "null"}}), json!(0), json!(null)),
        (FROM_7, json!({"if": {"minimum": 1}, "then": {"maximum": 2}, "else": false}), json!(1), json!(0)),
        (FROM_6, json!({"properties": {"a": false}}), json!({}), json!({"a": 1})),
        // References.
        (ALL, json!({"definitions": {"a": {"type": "null"}}, "$ref": "#/definitions/a"}), json!(null), json!(1)),
        (FROM_2019, json!({"$defs": {"a": {"$anchor": "x", "type": "null"}}, "$ref": "#x"}), json!(null), json!(1)),
        (
            D2020,
            json!({"$dynamicAnchor": "n", "properties": {"n": {"$dynamicRef": "#n"}}, "required": ["v"]}),
            json!({"v": 1, "n": {"v": 1}}),
            json!({"v": 1, "n": {}}),
        ),
        (
            D2019,
            json!({"$recursiveAnchor": true, "properties": {"n": {"$recursiveRef": "#"}}, "required": ["v"]}),
            json!({"v": 1, "n": {"v": 1}}),
            json!({"v": 1, "n": {}}),
        ),
        (
            FROM_6,
            json!({"$id": "https://a.test/s", "properties": {"a": {"$ref": "t#/definitions/u"}},
                   "definitions": {"t": {"$id": "t", "definitions": {"u": {"type": "null"}}}}}),
            json!({"a": null}),
            json!({"a": 1}),
        ),
        (
            D4,
            json!({"id": "https://a.test/s", "properties": {"a": {"$ref": "t"}},
                   "definitions": {"t": {"id": "t", "type": "null"}}}),
            json!({"a": null}),
            json!({"a": 1}),
        ),
    ];
    for (dialects, schema, good, bad) in table {
        for &dialect in dialects {
            let mut schema = schema.clone();
            schema["$schema"] = json!(DIALECTS[dialect]);
            assert!(check(schema.clone(), &good).is_ok(), "{schema} refuses {good}");
            let error = check(schema.clone(), &bad).expect_err(&format!("{schema} takes {bad}"));
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{schema} of {bad}: {error:?}");
            assert!(!error.violations().is_empty(), "{schema} of {bad}");
        }
    }
}

#[test]
fn without_a_dialect_it_is_2020_12() {
    assert!(check(json!({"prefixItems": [{"type": "null"}]}), &json!([1])).is_err());
}

#[test]
fn an_unknown_dialect_is_refused() {
    for dialect in [json!("https://json-schema.org/draft/2077-01/schema"), json!("draft-07"), json!(7)] {
        let (pointer, reason) = refused(json!({"$schema": dialect}));
        assert_eq!(pointer, "/input_schema/$schema");
        assert!(reason.contains("2020-12"), "{reason}");
    }
    let nested = json!({"$defs": {"a": {"$schema": DIALECTS[2]}}, "$schema": DIALECTS[0]});
    assert_eq!(refused(nested).0, "/input_schema/$defs/a/$schema");
}

#[test]
fn a_schema_that_is_none_is_refused_with_every_place() {
    let schema = json!({"type": "strng", "properties": {"a/b": {"minLength": -1}}, "required": "a"});
    let mut pointers: Vec<_> = admit(schema.clone()).into_iter().map(|found| found.pointer).collect();
    pointers.sort();
    assert_eq!(pointers, ["/input_schema/properties/a~1b/minLength", "/input_schema/required", "/input_schema/type"]);
    let mut both = with_input(schema.clone());
    both.output_schema = Some(schema);
    let violations = Validation::default().admit(&both, &Settings::none());
    assert_eq!(violations.len(), 6);
    assert!(violations.iter().any(|found| found.pointer == "/output_schema/type"));
    for none in [json!(null), json!([]), json!("string"), json!(1)] {
        assert_eq!(refused(none).0, "/input_schema");
    }
}

#[test]
fn a_schema_that_is_none_is_quoted_with_what_would_be_right() {
    let types = "there are array, boolean, integer, null, number, object and string";
    for dialect in DIALECTS {
        let (_, reason) = refused(json!({"$schema": dialect, "type": "objekt"}));
        assert_eq!(reason, format!("\"objekt\" is no type: {types}"), "{dialect}");
        let (pointer, reason) = refused(json!({"$schema": dialect, "dependencies": {"a": 7}}));
        assert_eq!((&*pointer, &*reason), ("/input_schema/dependencies/a", "7 can't stand here"), "{dialect}");
    }
}

#[test]
fn a_reference_to_anything_outside_is_refused_at_its_place() {
    for outside in [
        "http://a.test/s",
        "https://a.test/s#/definitions/a",
        "https://a.test/s#anchor",
        "file:///etc/passwd",
        "other.json",
        "./other.json#/a",
        "../other.json",
        "/etc/passwd",
        "//a.test/s",
        "urn:example:a",
    ] {
        for dialect in DIALECTS {
            let schema = json!({"$schema": dialect, "properties": {"a~b": {"items": {"$ref": outside}}}});
            let (pointer, reason) = refused(schema);
            assert_eq!(pointer, "/input_schema/properties/a~0b/items/$ref");
            assert!(reason.contains(outside) && reason.contains("nothing is loaded"), "{reason}");
        }
    }
    let dynamic = json!({"properties": {"a": {"$dynamicRef": "https://a.test/s#a"}}});
    assert_eq!(refused(dynamic).0, "/input_schema/properties/a/$dynamicRef");
}

#[test]
fn every_reference_that_leads_nowhere_is_refused_at_its_place() {
    let schema = json!({
        "properties": {"a": {"$ref": "#/$defs/nothing"}, "b": {"$ref": "#nowhere"}, "c": {"$ref": "https://a.test/"}},
        "$defs": {"unused": {"$ref": "#/properties/z"}},
    });
    let mut pointers: Vec<_> = admit(schema).into_iter().map(|found| found.pointer).collect();
    pointers.sort();
    let expected = ["$defs/unused/$ref", "properties/a/$ref", "properties/b/$ref", "properties/c/$ref"];
    assert_eq!(pointers, expected.map(|at| format!("/input_schema/{at}")));
}

#[test]
fn what_only_looks_like_a_reference_is_none() {
    let schema = json!({
        "properties": {"$ref": {"type": "string"}, "$schema": {"type": "string"}},
        "enum": [{"$ref": "https://a.test/"}],
        "default": {"$ref": "https://a.test/", "$schema": "https://a.test/"},
    });
    assert!(check(schema, &json!({"$ref": "https://a.test/"})).is_ok());
}

#[test]
fn a_schema_may_refer_to_itself_and_to_the_meta_schemas() {
    for dialect in DIALECTS {
        let tree = json!({"$schema": dialect, "type": "object", "additionalProperties": {"$ref": "#"}});
        assert!(check(tree.clone(), &json!({"a": {"b": {}}})).is_ok());
        assert_eq!(places(&check(tree, &json!({"a": {"b": 1}})).unwrap_err()), [("/a/b", "/type")]);
        let schemas = json!({"$schema": dialect, "items": {"$ref": dialect}});
        assert!(check(schemas.clone(), &json!([{"type": "string"}])).is_ok());
        assert!(check(schemas, &json!([{"type": "strng"}])).is_err());
    }
}

#[test]
fn a_schema_that_applies_to_one_value_without_end_is_refused() {
    for schema in [
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"not": {"anyOf": [{}, {"$ref": "#"}]}}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"if": {"$ref": "#/$defs/a"}}}}),
        json!({"$dynamicAnchor": "a", "dependentSchemas": {"x": {"$dynamicRef": "#a"}}}),
        json!({"$schema": DIALECTS[1], "$recursiveAnchor": true, "oneOf": [{"$recursiveRef": "#"}]}),
    ] {
        let (_, reason) = refused(schema.clone());
        assert!(reason.contains("without end"), "{schema}: {reason}");
    }
}

#[test]
fn a_schema_that_multiplies_itself_is_refused() {
    let mut parts = serde_json::Map::new();
    for index in 0..14 {
        let next = json!({"$ref": format!("#/$defs/{}", index + 1)});
        parts.insert(index.to_string(), json!({"allOf": [next, next]}));
    }
    parts.insert("14".to_owned(), json!({}));
    let (_, reason) = refused(json!({"$defs": parts, "$ref": "#/$defs/0"}));
    assert!(reason.contains("more than 10000 schemas"), "{reason}");
}

fn chain(length: usize, last: Value) -> Value {
    let mut parts = serde_json::Map::new();
    for index in 0..length {
        parts.insert(index.to_string(), json!({"$ref": format!("#/$defs/{}", index + 1)}));
    }
    parts.insert(length.to_string(), last);
    json!({"$defs": parts, "$ref": "#/$defs/0"})
}

/// A document of objects within objects, with another one inside.
fn nested(depth: usize, innermost: &str) -> Vec<u8> {
    ("{\"a\":".repeat(depth) + innermost + &"}".repeat(depth)).into_bytes()
}

#[test]
fn the_deepest_checks_that_are_let_in_fit_the_stack() {
    let validation = Validation::default();
    let closed = json!({"type": "object", "additionalProperties": {"$ref": "#"}});
    for (length, deepest) in [(1, 126), (5, 126), (14, 60), (29, 32)] {
        let schema = with_input(chain(length, closed.clone()));
        assert!(validation.admit(&schema, &Settings::none()).is_empty());
        validation.check_payload(&schema, &nested(deepest - 1, "{}")).unwrap();
        let error = validation.check_payload(&schema, &nested(deepest - 1, "1")).unwrap_err();
        assert_eq!(error.violations().len(), 1, "{error:?}");
        let error = validation.check_payload(&schema, &nested(deepest + 2, "{}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let (_, reason) = refused(chain(32, json!({})));
    assert!(reason.contains("chain of more than 32"), "{reason}");
}

#[test]
fn a_schema_that_does_not_refer_to_itself_takes_documents_of_any_depth() {
    let schema = with_input(chain(29, json!({"properties": {"a": chain(0, json!({}))["$defs"]["0"]}})));
    Validation::default().check_payload(&schema, &nested(126, "{}")).unwrap();
}

#[test]
fn a_payload_that_multiplies_the_work_is_refused() {
    let branch =
        |kind: &str| json!({"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}, "kind": {"pattern": kind}}});
    let schema = json!({"type": "object", "allOf": [branch("x"), branch("y"), branch("z")]});
    let error = Validation::default().check_payload(&with_input(schema), &nested(100, "1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.violations().len() <= 100);
}

#[test]
fn a_check_that_takes_too_many_steps_is_given_up() {
    let mut limits = ValidationLimits::default();
    let spec = with_input(json!({"allOf": vec![json!({"minimum": 1}); 100]}));
    Validation::new(limits.clone()).check_payload(&spec, b"1").unwrap();
    limits.max_steps = 0;
    for payload in [b"1", b"0"] {
        let error = Validation::new(limits.clone()).check_payload(&spec, payload);
        // The first rule tells that 0 is too small, before the steps are used up.
        match payload {
            b"0" => assert!(error.unwrap_err().message().contains("does not meet")),
            _ => assert!(error.unwrap_err().message().contains("takes more than 16 steps")),
        }
    }
}

#[test]
fn limits_are_kept() {
    let long = json!({"description": "x".repeat(256 * 1024)});
    assert!(refused(long).1.contains("at most 262144 are allowed"));
    let mut deep = json!({});
    for _ in 0..63 {
        deep = json!({"items": deep});
    }
    assert!(admit(deep.clone()).is_empty());
    assert!(refused(json!({"items": deep})).1.contains("deeper than 64 levels"));
    let mut endless = json!({});
    for _ in 0..500 {
        endless = json!([endless]);
    }
    assert!(refused(json!({"default": endless})).1.contains("deeper than 64 levels"));
    let wide = json!({"default": {"k".repeat(100_000): vec![0; 70_000]}});
    assert!(refused(wide).1.contains("below too long names"));
    let patterns: serde_json::Map<_, _> = (0..257).map(|index| (format!("^{index}$"), json!({}))).collect();
    let (pointer, reason) = refused(json!({"patternProperties": patterns}));
    assert_eq!((&*pointer, &*reason), ("/input_schema", "has more than 256 different patterns"));
}

#[test]
fn a_pattern_that_is_not_linear_is_refused_at_its_place() {
    for pattern in ["(?<!a)b", "(?<=a)b", "a(?!b)", "(a)\\1", "\\p{L}{1000}{100}", "("] {
        for dialect in [DIALECTS[0], DIALECTS[1]] {
            let (pointer, reason) = refused(json!({"$schema": dialect, "items": {"pattern": pattern}}));
            assert_eq!(pointer, "/input_schema/items/pattern");
            assert!(reason.contains("linear time"), "{reason}");
        }
        let keyed = json!({"patternProperties": {pattern: {}}});
        assert_eq!(refused(keyed).0, format!("/input_schema/patternProperties/{}", report::escape(pattern)));
    }
}

#[test]
fn a_pattern_that_would_backtrack_runs_in_linear_time() {
    for pattern in ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^([a-z]+)*z?$"] {
        let schema = json!({"pattern": pattern});
        assert!(check(schema.clone(), &json!("a".repeat(100_000))).is_ok());
        // Backtracking, this would not come to an end.
        assert!(check(schema, &json!("a".repeat(100_000) + "!")).is_err());
    }
}

#[test]
fn every_violation_names_its_place_in_document_and_schema() {
    let schema = json!({
        "properties": {
            "a/b": {"type": "array", "items": {"maximum": 1}},
            "m~n": {"$ref": "#/$defs/short"},
        },
        "required": ["x"],
        "additionalProperties": false,
        "$defs": {"short": {"maxLength": 1}},
    });
    let error = check(schema, &json!({"a/b": [0, 2, 3], "m~n": "ab", "more/": 1, "most": 2})).unwrap_err();
    let mut found = places(&error);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("", "/required"),
            ("/a~1b/1", "/properties/a~1b/items/maximum"),
            ("/a~1b/2", "/properties/a~1b/items/maximum"),
            ("/more~1", "/additionalProperties"),
            ("/most", "/additionalProperties"),
            ("/m~0n", "/$defs/short/maxLength"),
        ]
    );
}

#[test]
fn each_property_of_an_object_that_takes_none_is_named() {
    let closed = json!({"additionalProperties": false});
    let schema = json!({"properties": {"properties": closed, "additionalProperties": false}});
    let document = json!({"properties": {"a": 1, "b": 1}, "additionalProperties": {"c": 1}});
    let error = check(schema, &document).unwrap_err();
    let closed = "/properties/properties/additionalProperties";
    let never = ("/additionalProperties", "/properties/additionalProperties");
    assert_eq!(places(&error), [never, ("/properties/a", closed), ("/properties/b", closed)]);
    assert_eq!(error.violations()[0].reason, "nothing is allowed here");
    assert_eq!(error.violations()[1].reason, "this property is not allowed");
}

#[test]
fn violations_are_listed_up_to_a_limit_and_the_last_one_says_so() {
    let numbers = |count| json!(vec!["x"; count]);
    let schema = json!({"items": {"type": "number"}});
    let error = check(schema.clone(), &numbers(100)).unwrap_err();
    assert_eq!((error.violations().len(), &*error.violations()[99].pointer), (100, "/99"));
    for count in [101, 100_000] {
        let error = check(schema.clone(), &numbers(count)).unwrap_err();
        let [first, .., last] = error.violations() else { panic!("{error:?}") };
        assert_eq!((error.violations().len(), &*first.pointer), (100, "/0"));
        assert_eq!((&*last.pointer, last.reason.contains("not listed")), ("", true));
    }
    let names: serde_json::Map<_, _> = (0..101).map(|index| (index.to_string(), json!(1))).collect();
    let error = check(json!({"additionalProperties": false}), &json!(names)).unwrap_err();
    assert_eq!(error.violations().len(), 100);
    assert!(error.violations()[99].reason.contains("not listed"));
}

#[test]
fn a_payload_that_is_no_json_is_an_input_error() {
    let validation = Validation::default();
    for payload in [&b""[..], b"canary-3f9a1c", b"\"\xff\"", br#"{"a": 1, "a": 1}"#, br#"{"a": canary-3f9a1c"#] {
        let error = validation.check_payload(&with_input(json!({})), payload).unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidInput, Delivery::NotSent));
        assert!(error.message().starts_with("the payload is "), "{error}");
        assert!(!format!("{error} {error:?}").contains(CANARY));
    }
    assert!(validation.check_payload(&spec(), b"").is_ok());
}

#[test]
fn a_result_that_breaks_its_schema_is_the_functions_error_and_it_ran() {
    let schema = Schema::compile(&json!({"type": "null"}), &ValidationLimits::default()).unwrap();
    for result in [&b"1"[..], b"", b"x"] {
        let error = Side::Output.check(&schema, result).unwrap_err();
        assert_eq!((error.kind(), error.class()), (ErrorKind::InvalidOutput, ErrorClass::Function));
        assert_eq!(error.delivery(), Delivery::Executed);
        assert!(error.message().starts_with("the result "));
    }
    assert!(Side::Output.check(&schema, b"null").is_ok());
}

#[test]
fn no_error_shows_a_value_of_the_document() {
    let text = json!(CANARY);
    let list = json!([CANARY, CANARY]);
    let object = json!({"a": CANARY});
    for (schema, document) in [
        (json!({"type": "null"}), &text),
        (json!({"enum": [1]}), &text),
        (json!({"const": 1}), &text),
        (json!({"maxLength": 1}), &text),
        (json!({"minLength": 100}), &text),
        (json!({"pattern": "^$"}), &text),
        (json!({"$schema": DIALECTS[2], "format": "email"}), &text),
        (json!({"$schema": DIALECTS[2], "contentEncoding": "base64"}), &text),
        (json!({"$schema": DIALECTS[2], "contentMediaType": "application/json"}), &text),
        (json!({"not": {}}), &text),
        (json!(false), &text),
        (json!({"anyOf": [{"type": "null"}, {"maxLength": 1}]}), &text),
        (json!({"oneOf": [{"type": "null"}, {"maxLength": 1}]}), &text),
        (json!({"oneOf": [{}, {"minLength": 1}]}), &text),
        (json!({"if": {}, "then": {"const": 0}}), &text),
        (json!({"uniqueItems": true}), &list),
        (json!({"contains": {"type": "null"}}), &list),
        (json!({"maxItems": 1}), &list),
        (json!({"prefixItems": [{}], "items": false}), &list),
        (json!({"prefixItems": [{}], "unevaluatedItems": false}), &list),
        (json!({"$schema": DIALECTS[4], "items": [{}], "additionalItems": false}), &list),
        (json!({"maxProperties": 0}), &object),
        (json!({"required": ["b"]}), &object),
        (json!({"dependentRequired": {"a": ["b"]}}), &object),
        (json!({"additionalProperties": false}), &object),
        (json!({"unevaluatedProperties": false}), &object),
        (json!({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "null"}}}), &object),
    ] {
        let error = check(schema.clone(), document).unwrap_err();
        assert!(!error.violations().is_empty());
        let mut shown = format!("{error} {error:?} {error:#?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            write!(shown, "{cause} {cause:?}").unwrap();
            source = cause.source();
        }
        assert!(!shown.contains(CANARY), "{schema}: {shown}");
    }
}

#[test]
fn a_name_of_the_document_is_in_pointers_only() {
    for schema in [
        json!({"additionalProperties": false}),
        json!({"unevaluatedProperties": false}),
        json!({"propertyNames": {"maxLength": 1}}),
        json!({"propertyNames": {"pattern": "^a$", "type": "string", "enum": ["a"]}}),
        json!({"additionalProperties": {"type": "null"}}),
    ] {
        let error = check(schema.clone(), &json!({CANARY: 1})).unwrap_err();
        assert!(!error.message().contains(CANARY));
        assert!(error.violations().iter().all(|found| !found.reason.contains(CANARY)), "{schema}: {error:?}");
    }
}

#[test]
fn reasons_and_pointers_are_bounded() {
    let error = check(json!({"const": "x".repeat(10_000)}), &json!(1)).unwrap_err();
    assert!(error.violations()[0].reason.len() < 400);
    let document = json!({"b".repeat(800): {"a".repeat(800): 1}});
    let error = check(json!({"additionalProperties": {"additionalProperties": false}}), &document).unwrap_err();
    assert_eq!(error.violations()[0].pointer, format!("/{}", "b".repeat(800)));
    assert!(error.violations()[0].reason.contains("further below"), "{}", error.violations()[0].reason);
}

#[test]
fn middleware_is_made_for_what_has_a_schema_and_reads_what_it_checks() {
    let schema = json!({"type": "object"});
    let input = with_input(schema.clone());
    let output = spec().with_output_schema(schema.clone());
    let both = input.clone().with_output_schema(schema);
    let validation = Validation::default();
    assert!(validation.build(&revision(spec()), &Value::Null).unwrap().is_none());
    for (spec, access) in [(input, BodyAccess::Request), (output, BodyAccess::Response), (both, BodyAccess::Both)] {
        let built = validation.build(&revision(spec), &Value::Null).unwrap().unwrap();
        assert_eq!(built.body_access(), access);
        assert_eq!((built.name(), built.stage()), (validation.name(), Stage::Validate));
        assert_eq!(built.claims(), [SpecField::InputSchema, SpecField::OutputSchema]);
    }
}

#[test]
fn a_revision_whose_schema_is_no_longer_taken_is_misconfigured() {
    let broken = with_input(json!({"$schema": "https://a.test/"}));
    let error = Validation::default().build(&revision(broken), &Value::Null).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert_eq!(error.violations()[0].pointer, "/input_schema/$schema");
}

#[test]
fn settings_that_nobody_reads_are_refused() {
    let settings = json!({"strict": true});
    let violations = Validation::default().admit(&spec(), &Settings::chosen(&settings, 1));
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].pointer, "/middleware/1/settings");
}

#[test]
fn odd_identifiers_are_refused_or_taken_but_never_a_panic() {
    for id in [
        "",
        "#",
        "a",
        "a#",
        "a#b",
        "#a",
        "%",
        "::",
        "http://",
        "http://a.test#",
        "urn:a",
        "/a/../b",
        "?",
        "json-schema:///",
    ] {
        for (dialect, keyword) in DIALECTS.iter().zip(["$id", "$id", "$id", "$id", "id"]) {
            let root = json!({"$schema": dialect, keyword: id, "properties": {"a": {"$ref": "#"}}});
            let part = json!({"$schema": dialect, "definitions": {"a": {keyword: id, "items": {"$ref": "#"}}}});
            let twice = json!({"$schema": dialect, keyword: id, "definitions": {"a": {keyword: id}}});
            for schema in [root, part, twice] {
                if admit(schema.clone()).is_empty() {
                    check(schema, &json!({})).unwrap();
                }
            }
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c/~é]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-c/~é]{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A schema that exactly one shape of document meets.
fn shape_of(document: &Value) -> Value {
    match document {
        Value::Null => json!({"type": "null"}),
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(_) => json!({"type": "integer"}),
        Value::String(text) => json!({"type": "string", "const": text}),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(shape_of).collect();
            if items.is_empty() {
                return json!({"type": "array", "maxItems": 0});
            }
            json!({"type": "array", "minItems": items.len(), "prefixItems": items, "items": false})
        }
        Value::Object(members) => {
            let properties: serde_json::Map<_, _> =
                members.iter().map(|(name, value)| (name.clone(), shape_of(value))).collect();
            let required: Vec<_> = members.keys().collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// Every place of a document.
fn all_places(document: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match document {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| all_places(item, &format!("{at}/{index}"), found));
        }
        Value::Object(members) => {
            members
                .iter()
                .for_each(|(name, value)| all_places(value, &format!("{at}/{}", report::escape(name)), found));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_meets_its_schema_passes_and_a_change_is_found_where_it_is(document in any_json(), pick in any::<prop::sample::Index>()) {
        let schema = shape_of(&document);
        prop_assert!(check(schema.clone(), &document).is_ok());

        let mut places = Vec::new();
        all_places(&document, "", &mut places);
        let place = pick.get(&places);
        let mut changed = document.clone();
        let part = changed.pointer_mut(place).unwrap();
        *part = if part.is_null() { json!(1.5) } else { Value::Null };
        let error = check(schema, &changed).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::InvalidInput);
        prop_assert!(!error.violations().is_empty());
        for found in error.violations() {
            prop_assert_eq!(&found.pointer, place);
        }
    }

    #[test]
    fn no_schema_brings_the_gateway_down(schema in any_json(), keywords in proptest::collection::vec((0_usize..KEYWORDS.len(), any_json()), 0..6), document in any_json()) {
        let mut schema = schema;
        for (keyword, value) in keywords {
            schema = match schema {
                Value::Object(mut members) => { members.insert(KEYWORDS[keyword].to_owned(), value); Value::Object(members) }
                other => json!({KEYWORDS[keyword]: other}),
            };
        }
        if admit(schema.clone()).is_empty() {
            let refused = check(schema, &document).err();
            prop_assert!(refused.is_none_or(|error| error.kind() == ErrorKind::InvalidInput));
        }
    }
}

const KEYWORDS: &[&str] = &[
    "$ref",
    "$id",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$defs",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "items",
    "prefixItems",
    "contains",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "required",
    "enum",
    "const",
    "type",
    "pattern",
    "unevaluatedProperties",
    "unevaluatedItems",
    "dependentSchemas",
];
