//! Tests of the codec: all modes, the examples of the specification, and what is refused.

use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    AttributeValue, Event, EventBuilder, EventLimits, EventString, Events, from_http, to_http_batch, to_http_binary,
    to_http_structured,
};

fn limits() -> EventLimits {
    EventLimits::default()
}

fn minimal() -> EventBuilder {
    Event::builder().id("1").source("/s").event_type("t")
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// A message in the binary mode: what every event has, and more.
fn binary(more: &[(&'static str, &str)], body: &'static str) -> Result<Event, Error> {
    let mut all = vec![("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    all.extend(more);
    match from_http(&headers(&all), &Bytes::from(body), &limits())? {
        Events::One(event) => Ok(*event),
        Events::Batch(_) => panic!("a batch"),
    }
}

/// A message in the structured mode: what every event has, and more.
fn structured(more: &Value) -> Result<Event, Error> {
    let mut members = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
    for (name, value) in more.as_object().unwrap() {
        members[name] = value.clone();
    }
    Event::from_json(members.to_string().as_bytes(), &limits())
}

fn as_json(event: &Event) -> Value {
    serde_json::from_slice(&event.to_json().unwrap()).unwrap()
}

fn violations(result: Result<impl std::fmt::Debug, Error>) -> Vec<(String, String)> {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.violations().iter().map(|found| (found.pointer.clone(), found.reason.clone())).collect()
}

fn only_violation(result: Result<impl std::fmt::Debug, Error>) -> (String, String) {
    let found = violations(result);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

mod the_specification {
    use super::*;

    /// Section 3.2 of the JSON event format: each example, and the same event in the binary mode, which is written there too.
    #[test]
    fn examples_of_the_json_format_are_the_same_in_the_binary_mode() {
        let common = |id: &str| {
            json!({
                "specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": id,
                "time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5,
                "subject": null, "unsetextension": null,
            })
        };
        let object = r#"{"appinfoA":"abc","appinfoB":123,"appinfoC":true}"#;
        for (content_type, member, value, expected_type, body) in [
            (
                Some("application/vnd.apache.thrift.binary"),
                "data_base64",
                json!("AAECAw=="),
                Some("application/vnd.apache.thrift.binary"),
                "\0\u{1}\u{2}\u{3}",
            ),
            (
                Some("application/xml"),
                "data",
                json!("<much wow=\"xml\"/>"),
                Some("application/xml"),
                "<much wow=\"xml\"/>",
            ),
            (
                Some("application/json"),
                "data",
                json!({"appinfoA": "abc", "appinfoB": 123, "appinfoC": true}),
                Some("application/json"),
                object,
            ),
            (Some("application/json"), "data", json!(1.5), Some("application/json"), "1.5"),
            (None, "data", json!("I'm just a string"), Some("application/json"), "\"I'm just a string\""),
            (None, "data_base64", json!("eyAieHl6IjogMTIzIH0="), None, "{ \"xyz\": 123 }"),
        ] {
            let mut example = common("A234-1234-1234");
            example[member] = value.clone();
            if let Some(content_type) = content_type {
                example["datacontenttype"] = content_type.into();
            }
            let event = Event::from_json(example.to_string().as_bytes(), &limits()).unwrap();
            let (headers, found) = to_http_binary(&event).unwrap();
            assert_eq!(found, body);
            let mut expected = vec![
                ("ce-specversion", "1.0"),
                ("ce-type", "com.example.someevent"),
                ("ce-source", "/mycontext"),
                ("ce-id", "A234-1234-1234"),
                ("ce-time", "2018-04-05T17:31:00Z"),
                ("ce-comexampleextension1", "value"),
                ("ce-comexampleothervalue", "5"),
            ];
            expected.extend(expected_type.map(|content_type| ("content-type", content_type)));
            assert_eq!(headers, super::headers(&expected));
            assert_eq!(as_json(&event)[member], value);
        }
    }

    /// Section 4.3 of the JSON event format.
    #[test]
    fn batches_hold_events_of_all_kinds_or_none() {
        let batch = json!([
            {
                "specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext/4", "id": "B234-1234-1234",
                "datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "AAEC"
            },
            {
                "specversion": "1.0", "type": "com.example.someotherevent", "source": "/mycontext/9", "id": "C234-1234-1234",
                "comexampleothervalue": 5, "datacontenttype": "application/json", "data": {"appinfoA": "abc"}
            }
        ]);
        let content_type = headers(&[("content-type", "application/cloudevents-batch+json; charset=UTF-8")]);
        let events = from_http(&content_type, &batch.to_string().into(), &limits()).unwrap().into_vec();
        assert_eq!(events[0].data().unwrap(), &[0_u8, 1, 2][..]);
        assert_eq!(events[1].extension("comexampleothervalue"), Some(&AttributeValue::Integer(5)));
        let (_, body) = to_http_batch(&events).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), batch);
        let none = from_http(&content_type, &Bytes::from(" [ ] "), &limits()).unwrap();
        assert_eq!(none, Events::Batch(Vec::new()));
        assert_eq!(to_http_batch(&[]).unwrap().1, "[]");
    }

    /// Section 3.1.3.2 of the HTTP protocol binding.
    #[test]
    fn header_values_are_percent_encoded() {
        let event = minimal().subject("Euro € 😀 \"100%\"").build().unwrap();
        let (headers, _) = to_http_binary(&event).unwrap();
        assert_eq!(headers["ce-subject"], "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22100%25%22");
        for (value, subject) in [
            ("Euro%20%e2%82%ac%20%F0%9F%98%80", "Euro € 😀"),
            ("%41%42C", "ABC"),
            ("a b", "a b"),
            ("\"quoted %41 \\\"\\\\ text\"", "quoted A \"\\ text"),
            ("in the \"middle\"", "in the \"middle\""),
            ("%2541", "%41"),
        ] {
            assert_eq!(binary(&[("ce-subject", value)], "").unwrap().subject(), Some(subject), "{value}");
        }
        for value in
            ["%C0%A0", "%FF", "%ED%A0%80", "100%", "%4", "%zz", "%+1", "é", "\"open", "\"a\" b", "%0A", "%C2%80", "\t"]
        {
            assert_eq!(only_violation(binary(&[("ce-subject", value)], "")).0, "/subject", "{value}");
        }
    }

    /// Section 3 of the HTTP protocol binding.
    #[test]
    fn the_content_type_tells_the_mode() {
        let one = minimal().build().unwrap().to_json().unwrap();
        let many = Bytes::from([b"[", &*one, b"]"].concat());
        for (content_type, body, is_batch) in [
            ("application/cloudevents+json", &one, false),
            ("Application/CloudEvents+JSON; charset=utf-8", &one, false),
            ("application/cloudevents-batch+json", &many, true),
            ("APPLICATION/CLOUDEVENTS-BATCH+JSON;charset=\"UTF-8\"", &many, true),
        ] {
            let headers = headers(&[("content-type", content_type), ("ce-id", "not looked at")]);
            let events = from_http(&headers, body, &limits()).unwrap();
            assert_eq!(matches!(events, Events::Batch(_)), is_batch, "{content_type}");
            assert_eq!(events.into_vec()[0].id(), "1");
        }
        for content_type in [
            "application/cloudevents",
            "application/cloudevents+avro",
            "application/cloudevents-batch+protobuf",
            "application/cloudevents+json; charset=utf-16",
            "application/cloudevents+json; charset",
        ] {
            let error = from_http(&headers(&[("content-type", content_type)]), &one, &limits()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{content_type}");
        }
    }

    /// Section 3.1.2 of the JSON event format.
    #[test]
    fn data_in_json_are_read_by_their_content_type() {
        let data = |more: Value| structured(&more).unwrap().data().cloned();
        assert_eq!(data(json!({})), None);
        assert_eq!(data(json!({"data": null})).unwrap(), "null");
        assert_eq!(data(json!({"data": "{}"})).unwrap(), "\"{}\"");
        assert_eq!(data(json!({"data": "{}", "datacontenttype": "text/json"})).unwrap(), "\"{}\"");
        assert_eq!(data(json!({"data": [1], "datacontenttype": "application/geo+json"})).unwrap(), "[1]");
        assert_eq!(data(json!({"data": "é", "datacontenttype": "text/plain"})).unwrap(), "é");
        assert_eq!(data(json!({"data": "", "datacontenttype": "text/plain"})).unwrap(), "");
        assert_eq!(data(json!({"data": null, "datacontenttype": "text/plain"})), None);
        assert_eq!(data(json!({"data": "a", "data_base64": null, "datacontenttype": "text/plain"})).unwrap(), "a");
        for (wrong, place) in [
            (json!({"data": 1, "datacontenttype": "text/plain"}), "/data"),
            (json!({"data": "é", "datacontenttype": "text/plain; charset=iso-8859-1"}), "/data"),
            (json!({"data": "\u{e9}", "datacontenttype": "text/plain; charset=us-ascii"}), "/data"),
            (json!({"data": "a", "data_base64": "YQ=="}), "/data_base64"),
            (json!({"data_base64": "YQ"}), "/data_base64"),
            (json!({"data_base64": "Y Q="}), "/data_base64"),
            (json!({"data_base64": {}}), "/data_base64"),
        ] {
            assert_eq!(only_violation(structured(&wrong)).0, place);
        }
    }

    /// Section 3.1.1 of the JSON event format.
    #[test]
    fn data_in_json_are_written_by_their_content_type() {
        let member = |content_type: &str, data: &'static [u8]| {
            let json = as_json(&minimal().data(content_type, data).build().unwrap());
            json.get("data").cloned().ok_or_else(|| json["data_base64"].as_str().unwrap().to_owned())
        };
        assert_eq!(member("application/json", b" {\"a\": 1}\n"), Ok(json!({"a": 1})));
        assert_eq!(member("image/svg+JSON; x=y", b"null"), Ok(Value::Null));
        assert_eq!(member("application/json", b"{"), Err("ew==".to_owned()));
        assert_eq!(member("application/json", b""), Err(String::new()));
        assert_eq!(member("application/json", b"\"\xFF\""), Err("Iv8i".to_owned()));
        assert_eq!(member("application/json; charset=iso-8859-1", b"\"\xC3\xA9\""), Err("IsOpIg==".to_owned()));
        assert_eq!(member("text/plain", "é".as_bytes()), Ok(json!("é")));
        assert_eq!(member("text/plain", b"\xFF"), Err("/w==".to_owned()));
        assert_eq!(member("text/plain; charset=iso-8859-1", "é".as_bytes()), Err("w6k=".to_owned()));
        assert_eq!(member("application/atom+xml", b"<a/>"), Ok(json!("<a/>")));
        assert_eq!(member("application/octet-stream", b"a"), Err("YQ==".to_owned()));
    }
}

#[test]
fn json_data_stay_as_they_are() {
    let data = r#"{"b": 1.0, "a": 123456789012345678901234567890, "a": "\ud800", "c": 1E400}"#;
    let json = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data": {data} }}"#);
    let event = Event::from_json(json.as_bytes(), &limits()).unwrap();
    assert_eq!(event.data().unwrap(), data);
    assert!(String::from_utf8(event.to_json().unwrap().into()).unwrap().contains(data));
}

#[test]
fn extensions_keep_the_types_that_json_has() {
    let event = structured(&json!({"flag": true, "count": -5, "text": "5", "empty": "", "none": null})).unwrap();
    let found: Vec<_> = event.extensions().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let text = |text: &str| AttributeValue::String(EventString::new(text).unwrap());
    let expected = [
        ("count", AttributeValue::Integer(-5)),
        ("empty", text("")),
        ("flag", AttributeValue::Boolean(true)),
        ("text", text("5")),
    ];
    assert_eq!(found, expected);
    assert_eq!(as_json(&event)["count"], json!(-5));
}

#[test]
fn what_is_no_attribute_in_json_is_refused_with_its_place() {
    let found = violations(structured(&json!({
        "id": 1, "source": "a b", "type": "", "time": "today", "subject": true, "specversion": "0.3",
        "myExt": "x", "float": 1.5, "large": 2_147_483_648_i64, "object": {}, "bell": "\u{7}"
    })));
    let mut places: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    places.sort_unstable();
    assert_eq!(
        places,
        [
            "/bell",
            "/float",
            "/id",
            "/large",
            "/myExt",
            "/object",
            "/source",
            "/specversion",
            "/subject",
            "/time",
            "/type"
        ]
    );
    let found = only_violation(structured(&json!({"id": null})));
    assert_eq!(found, ("/id".to_owned(), "is missing".to_owned()));
}

#[test]
fn an_attribute_that_is_there_twice_is_refused() {
    let json = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1,"a":"x","a":null,"data":2}"#;
    let found = violations(Event::from_json(json.as_bytes(), &limits()));
    assert_eq!(found.iter().map(|(pointer, _)| &**pointer).collect::<Vec<_>>(), ["/a", "/data"]);
    assert_eq!(only_violation(binary(&[("ce-a", "1"), ("ce-a", "2")], "")).0, "/a");
    let error = binary(&[("content-type", "a/b"), ("content-type", "a/b")], "").unwrap_err();
    assert!(error.message().contains("more than once"));
}

#[test]
fn headers_that_are_no_attributes_are_refused() {
    let more =
        [("ce-my-ext", "x"), ("ce-data", "x"), ("ce-", "x"), ("ce-datacontenttype", "a/b"), ("content-type", "json")];
    let mut places: Vec<_> = violations(binary(&more, "")).into_iter().map(|(pointer, _)| pointer).collect();
    places.sort_unstable();
    assert_eq!(places, ["/", "/data", "/datacontenttype", "/datacontenttype", "/my-ext"]);
    let found = violations(from_http(&headers(&[("ce-id", "1")]), &Bytes::new(), &limits()));
    assert_eq!(found.iter().map(|(pointer, _)| &**pointer).collect::<Vec<_>>(), ["/specversion", "/source", "/type"]);
}

#[test]
fn a_message_without_an_event_is_refused_as_such() {
    let plain = headers(&[("content-type", "application/json"), ("x-id", "1")]);
    let error = from_http(&plain, &Bytes::from("{}"), &limits()).unwrap_err();
    assert!(error.message().starts_with("the message is no CloudEvent"), "{error}");
    for body in ["", "[]", "1", "{", "{} {}"] {
        let error = Event::from_json(body.as_bytes(), &limits()).unwrap_err();
        assert!(error.message().starts_with("the body is not an event in JSON"), "{error}");
    }
    let batch = headers(&[("content-type", "application/cloudevents-batch+json")]);
    for body in ["", "{}", "[", "[] []"] {
        let error = from_http(&batch, &Bytes::from(body), &limits()).unwrap_err();
        assert!(error.message().starts_with("the body is not a batch of events in JSON"), "{error}");
    }
}

#[test]
fn a_batch_is_refused_whole_with_the_places_in_it() {
    let good = as_json(&minimal().build().unwrap());
    let batch = json!([good, {"specversion": "1.0", "id": "1", "type": "t"}, [], good]);
    let content_type = headers(&[("content-type", "application/cloudevents-batch+json")]);
    let found = violations(from_http(&content_type, &batch.to_string().into(), &limits()));
    assert_eq!(found.iter().map(|(pointer, _)| &**pointer).collect::<Vec<_>>(), ["/1/source", "/2"]);
}

#[test]
fn limits_are_kept() {
    let event = minimal().data("text/plain", "x".repeat(100)).build().unwrap();
    let batch = to_http_batch(&vec![event.clone(); 3]).unwrap();
    for ((headers, body), limits, expected) in [
        (to_http_binary(&event).unwrap(), limits().with_max_body_bytes(100), None),
        (to_http_binary(&event).unwrap(), limits().with_max_body_bytes(99), Some(ErrorKind::PayloadTooLarge)),
        (to_http_structured(&event).unwrap(), limits().with_max_body_bytes(99), Some(ErrorKind::PayloadTooLarge)),
        (batch.clone(), limits().with_max_body_bytes(99), Some(ErrorKind::PayloadTooLarge)),
        (batch.clone(), limits().with_max_batch_events(3), None),
        (batch, limits().with_max_batch_events(2), Some(ErrorKind::PayloadTooLarge)),
    ] {
        let result = from_http(&headers, &body, &limits);
        assert_eq!(result.err().map(|error| error.kind()), expected);
    }
    // Names and values of the six attributes.
    let limits = |max: usize| EventLimits::default().with_max_attributes_bytes(max);
    let size = "specversion1.0id1source/stypetdatacontenttypetext/plain".len();
    for (headers, body) in [to_http_binary(&event).unwrap(), to_http_structured(&event).unwrap()] {
        assert!(from_http(&headers, &body, &limits(size)).is_ok());
        let (_, reason) = only_violation(from_http(&headers, &body, &limits(size - 1)));
        assert!(reason.ends_with("to more than 54 bytes"), "{reason}");
    }
}

#[test]
fn an_event_as_large_as_every_receiver_takes_is_taken() {
    let rest = EventLimits::INTEROPERABLE_EVENT_BYTES - 100;
    let event = minimal().extension("large", "x".repeat(rest)).build().unwrap();
    for (headers, body) in [to_http_binary(&event).unwrap(), to_http_structured(&event).unwrap()] {
        assert_eq!(from_http(&headers, &body, &limits()).unwrap().into_vec(), std::slice::from_ref(&event));
    }
}

#[test]
fn an_event_in_an_event_is_for_the_structured_mode() {
    let inner = minimal().build().unwrap().to_json().unwrap();
    let outer = minimal().data("Application/CloudEvents+json", inner).build().unwrap();
    assert_eq!(to_http_binary(&outer).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let (headers, body) = to_http_structured(&outer).unwrap();
    assert_eq!(from_http(&headers, &body, &limits()).unwrap().into_vec(), [outer]);
}

/// Text that an attribute may have.
fn text(min: usize) -> impl Strategy<Value = String> {
    let char = prop_oneof![any::<char>(), prop::char::range(' ', '~'), Just('%'), Just('"')]
        .prop_filter("is for attributes", |char| EventString::new(char.to_string()).is_ok());
    prop::collection::vec(char, min..12).prop_map(String::from_iter)
}

fn value() -> impl Strategy<Value = AttributeValue> {
    prop_oneof![
        any::<bool>().prop_map(AttributeValue::from),
        any::<i32>().prop_map(AttributeValue::from),
        text(0).prop_map(|text| AttributeValue::String(text.parse().unwrap())),
        any::<Vec<u8>>().prop_map(|bytes| AttributeValue::Binary(bytes.into())),
        Just(AttributeValue::Uri("https://example.com/?a=%20".parse().unwrap())),
        Just(AttributeValue::UriReference("../a;b#c".parse().unwrap())),
        Just(AttributeValue::Timestamp("2018-04-05T17:31:00.120+02:00".parse().unwrap())),
    ]
}

/// Data with a content type; what is not to be JSON is by chance only.
fn data() -> impl Strategy<Value = (Option<&'static str>, Option<Vec<u8>>)> {
    let content_type = prop::sample::select(vec![
        None,
        Some("application/json"),
        Some("text/plain"),
        Some("text/plain; charset=iso-8859-1"),
        Some("application/xml; charset=us-ascii"),
        Some("application/octet-stream"),
        Some("a/b; c=\"d;e\\\" \""),
    ]);
    let bytes = prop_oneof![
        any::<Vec<u8>>(),
        any::<String>().prop_map(String::into_bytes),
        any::<Vec<f64>>().prop_map(|numbers| serde_json::to_vec(&numbers).unwrap()),
        any::<String>().prop_map(|text| serde_json::to_vec(&text).unwrap()),
    ];
    (content_type, prop::option::of(bytes))
}

fn event() -> impl Strategy<Value = Event> {
    let names = "[a-z][a-z0-9]{0,19}".prop_filter("is no extension", |name| {
        !name.starts_with("data")
            && !["id", "source", "type", "subject", "time", "specversion"].contains(&name.as_str())
    });
    let source = "(https?://[a-z]{1,9})?(/[a-z0-9._~!$&'()*+,;=:@-]{1,9}){1,3}(\\?[a-z=&]{0,5})?";
    let extensions = prop::collection::btree_map(names, value(), 0..6);
    (text(1), source, text(1), prop::option::of(text(1)), extensions, data()).prop_map(
        |(id, source, kind, subject, extensions, (content_type, data))| {
            let mut event = Event::builder().id(id).source(source).event_type(kind);
            if let Some(subject) = subject {
                event = event.subject(subject).time("2018-04-05T17:31:00.1Z".parse().unwrap()).dataschema("urn:x:1");
            }
            for (name, value) in extensions {
                event = event.extension(name, value);
            }
            if let Some(content_type) = content_type {
                event = event.datacontenttype(content_type);
            }
            if let Some(data) = data {
                event = event.untyped_data(data);
            }
            event.build().unwrap()
        },
    )
}

/// What every way keeps of an event: the attributes as text, and the data.
fn kept(event: &Event) -> (Vec<(String, String)>, Option<Bytes>) {
    let core =
        event.core_attributes().into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let extensions = event.extensions().map(|(name, value)| (name.to_string(), value.to_string()));
    (core.chain(extensions).collect(), event.data().cloned())
}

proptest! {
    #[test]
    fn events_round_trip_in_the_binary_mode(event in event()) {
        let (headers, body) = to_http_binary(&event).unwrap();
        for value in headers.values() {
            prop_assert!(value.as_bytes().iter().all(|byte| (0x20..0x7F).contains(byte)));
        }
        let found = from_http(&headers, &body, &limits()).unwrap().into_vec();
        let (attributes, data) = kept(&event);
        prop_assert_eq!(found.iter().map(kept).collect::<Vec<_>>(), [(attributes, data.filter(|data| !data.is_empty()))]);
    }

    #[test]
    fn events_round_trip_in_the_structured_mode(event in event()) {
        let (headers, body) = to_http_structured(&event).unwrap();
        let found = from_http(&headers, &body, &limits()).unwrap().into_vec();
        prop_assert_eq!(found.iter().map(kept).collect::<Vec<_>>(), [with_data_trimmed(&event)]);
    }

    #[test]
    fn events_round_trip_in_batches(events in prop::collection::vec(event(), 0..4)) {
        let (headers, body) = to_http_batch(&events).unwrap();
        let Events::Batch(found) = from_http(&headers, &body, &limits()).unwrap() else { panic!("one event") };
        prop_assert_eq!(
            found.iter().map(kept).collect::<Vec<_>>(),
            events.iter().map(with_data_trimmed).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_taken_in_json_is_written_so_that_it_is_taken(event in event()) {
        let once = Event::from_json(&event.to_json().unwrap(), &limits()).unwrap();
        let again = Event::from_json(&once.to_json().unwrap(), &limits()).unwrap();
        prop_assert_eq!(again, once);
    }

    #[test]
    fn reading_never_panics(
        body in prop_oneof![any::<Vec<u8>>(), "[\\[{\"a-z:,0-9}\\]]{0,40}".prop_map(String::into_bytes)],
        value in any::<Vec<u8>>(),
        name in "ce-[ -~]{0,20}",
        content_type in prop::sample::select(vec!["application/cloudevents+json", "application/cloudevents-batch+json", "a/b"]),
    ) {
        let mut headers = headers(&[("content-type", content_type)]);
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), HeaderValue::from_bytes(&value)) {
            headers.insert(name, value);
        }
        let _ = from_http(&headers, &Bytes::from(body), &limits());
    }
}

/// JSON loses the white space around it, as it is a part of a larger document then.
fn with_data_trimmed(event: &Event) -> (Vec<(String, String)>, Option<Bytes>) {
    let (attributes, data) = kept(event);
    let is_json = event.datacontenttype().is_some_and(|content_type| content_type.is_json());
    let trimmed = |data: Bytes| match serde_json::from_slice::<serde::de::IgnoredAny>(&data) {
        Ok(_) if is_json => data.slice_ref(data.trim_ascii()),
        _ => data,
    };
    (attributes, data.map(trimmed))
}
