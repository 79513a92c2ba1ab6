//! The codec against the SDKs that the CloudEvents project has for Python and JavaScript: each reads what the other writes,
//! in all modes.
//!
//! The step `test` of `cargo xtask test` runs these tests: it installs the SDKs, and says where. By hand:
//!
//! ```sh
//! FUNCTION_GATEWAY_RUNTIMES=$(cargo xtask runtimes | tail -n 1) \
//!     cargo test -p function-gateway-events --test sdk -- --ignored
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use function_gateway_events::{
    AttributeValue, Event, EventBuilder, EventLimits, EventTime, from_http, to_http_batch, to_http_binary,
    to_http_structured,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Binary,
    Structured,
    Batch,
}

use Mode::{Batch, Binary, Structured};

impl Mode {
    const ALL: [Self; 3] = [Binary, Structured, Batch];

    fn as_str(self) -> &'static str {
        match self {
            Binary => "binary",
            Structured => "structured",
            Batch => "batch",
        }
    }

    fn count(self) -> usize {
        if self == Batch { 2 } else { 1 }
    }
}

/// Events that come out otherwise, and why. Once they do not any more, the test fails, too.
struct Deviation {
    cases: &'static [&'static str],
    modes: &'static [Mode],
    /// What the SDK does, and what the specification says.
    reason: &'static str,
}

struct Sdk {
    folder: &'static str,
    program: &'static [&'static str],
    /// What it does not read as we write it.
    reads: &'static [Deviation],
    /// What it does not write as we read it.
    writes: &'static [Deviation],
}

const PYTHON: Sdk = Sdk {
    folder: "cloudevents-python",
    program: &["venv/bin/python", "sdk.py"],
    reads: &[Deviation {
        cases: &["json null"],
        modes: &Mode::ALL,
        reason: "has no data where the data are `null`; JSON event format, 3.1.1: `null` is distinct from no data",
    }],
    writes: &[
        Deviation {
            cases: &["boolean"],
            modes: &[Binary],
            reason: "writes `True`, as Python has it; CloudEvents, type system: the canonical string is `true`",
        },
        Deviation {
            cases: &["json array", "json string", "json string of json", "json true"],
            modes: &[Binary],
            reason: "writes JSON of objects only, else `str(data)`, such as a string without its quotes; \
                     HTTP protocol binding, 2.2: data are encoded as the content type declares",
        },
        Deviation {
            cases: &["json null"],
            modes: &Mode::ALL,
            reason: "takes `None` for no data, so that `null` can't be sent; JSON event format, 3.1.1: it is distinct from no data",
        },
    ],
};

const JAVASCRIPT: Sdk = Sdk {
    folder: "cloudevents-node",
    program: &["node", "sdk.js"],
    reads: &[
        Deviation {
            cases: &["space", "quotes", "percent", "unicode"],
            modes: &[Binary],
            reason: "leaves header values percent-encoded; HTTP protocol binding, 3.1.3.2: they must be decoded",
        },
        Deviation {
            cases: &["json with suffix"],
            modes: &[Binary],
            reason: "hands out the text, as it parses `application/json` only; the specification leaves that to it",
        },
        Deviation {
            cases: &["json number", "json zero", "json true", "json null"],
            modes: &[Binary],
            reason: "puts quotes around what begins with none of `[{|\"`, so that `1.5` is a string; \
                     HTTP protocol binding, 3.1.2: the body is the data",
        },
        Deviation {
            cases: &["json zero", "json null"],
            modes: &[Structured],
            reason: "drops members that are falsy; JSON event format, 3.1.2: `data` is the JSON value that is there",
        },
    ],
    writes: &[
        Deviation {
            cases: &["no data", "untyped"],
            modes: &[Binary],
            reason: "sends `application/json; charset=utf-8` where there is no content type; HTTP protocol binding, 3.1.1: \
                     content-type is datacontenttype",
        },
        Deviation {
            cases: &["quotes", "percent", "unicode"],
            modes: &[Binary],
            reason: "does not percent-encode header values, so that `%25` arrives as `%` and others are refused; \
                     HTTP protocol binding, 3.1.3.2: it must",
        },
        Deviation {
            cases: &["json string", "json string of json"],
            modes: &[Binary],
            reason: "writes a string without its quotes; HTTP protocol binding, 2.2: data are encoded as the content type declares",
        },
    ],
};

/// Events by name, each with something that an implementation can get wrong.
fn cases() -> Vec<(&'static str, Event)> {
    let event = || Event::builder().id("A234-1234-1234").source("/mycontext").event_type("com.example.someevent");
    let timed = || event().time("2018-04-05T17:31:00.120Z".parse().unwrap());
    let plain = || timed().data("text/plain", "x");
    let cases: Vec<(&str, EventBuilder)> = vec![
        ("no data", event()),
        ("all attributes", plain().subject("larger-context").dataschema("https://example.com/schema")),
        ("offset", plain().time("2018-04-05T19:31:00.120+02:00".parse().unwrap())),
        ("extensions", plain().extension("text", "value").extension("count", -5)),
        ("reserved characters", plain().extension("reserved", "a/b?c=d&e;f,(g)~'h'")),
        ("boolean", plain().extension("flag", true)),
        ("empty extension", plain().extension("empty", "")),
        ("space", plain().subject("a b")),
        ("quotes", plain().subject("\"quoted\" \\ text")),
        ("percent", plain().subject("100%25")),
        ("unicode", plain().subject("Euro € 😀").extension("accent", "é")),
        ("json object", timed().data("application/json", r#"{"appinfoA": "abc", "appinfoB": 123, "appinfoC": null}"#)),
        ("json with suffix", timed().data("application/geo+json", r#"{"type": "Point"}"#)),
        ("json with charset", timed().data("application/json; charset=utf-8", r#"{"a": "é"}"#)),
        ("json array", timed().data("application/json", "[1, \"two\", {}]")),
        ("json string", timed().data("application/json", r#""I'm just a string""#)),
        ("json string of json", timed().data("application/json", r#""{\"a\": 1}""#)),
        ("json number", timed().data("application/json", "1.5")),
        ("json zero", timed().data("application/json", "0")),
        ("json true", timed().data("application/json", "true")),
        ("json null", timed().data("application/json", "null")),
        ("text", timed().data("text/plain", "Euro € 😀")),
        ("text that looks like json", timed().data("text/plain", "{\"a\": 1}")),
        ("xml", timed().data("application/xml", "<much wow=\"xml\"/>")),
        ("binary", timed().data("application/octet-stream", vec![0_u8, 1, 0xFF, 0xFE])),
        ("untyped", timed().untyped_data(vec![0_u8, 1, 0xFF, 0xFE])),
    ];
    cases.into_iter().map(|(name, event)| (name, event.build().unwrap())).collect()
}

/// An event as the scripts tell it, with the value of an attribute as JSON has it.
fn told(event: &Event) -> Value {
    let mut attributes = serde_json::Map::new();
    for name in ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"] {
        attributes.extend(event.attribute(name).map(|value| (name.to_owned(), Value::from(value))));
    }
    for (name, value) in event.extensions() {
        let value = match value {
            AttributeValue::Boolean(value) => Value::from(*value),
            AttributeValue::Integer(value) => Value::from(*value),
            other => Value::from(other.to_string()),
        };
        attributes.insert(name.to_string(), value);
    }
    let is_json = event.datacontenttype().is_some_and(|content_type| content_type.is_json());
    let data = event.data().map(|data| match std::str::from_utf8(data) {
        Ok(text) => match serde_json::from_str::<Value>(text) {
            Ok(value) if is_json => json!({ "json": value }),
            _ => json!({ "text": text }),
        },
        Err(_) => json!({ "bytes": STANDARD.encode(data) }),
    });
    json!({ "attributes": attributes, "data": data })
}

/// What is compared of an event.
#[derive(PartialEq)]
struct Compared {
    /// As text, but for the time: a point in time, and only where the event came with one, since both SDKs add it.
    attributes: BTreeMap<String, String>,
    /// A JSON value, or bytes.
    data: Option<Result<Value, Vec<u8>>>,
}

impl Compared {
    fn of(told: &Value, has_time: bool) -> Option<Self> {
        let mut attributes = BTreeMap::new();
        for (name, value) in told["attributes"].as_object()? {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if name != "time" {
                attributes.insert(name.clone(), text);
            } else if has_time {
                attributes.insert(name.clone(), text.parse::<EventTime>().ok()?.timestamp().to_string());
            }
        }
        let data = match &told["data"] {
            Value::Null => None,
            data => Some(match (data.get("json"), data["text"].as_str(), data["bytes"].as_str()) {
                (Some(value), _, _) => Ok(value.clone()),
                (_, Some(text), _) => Err(text.as_bytes().to_vec()),
                (_, _, bytes) => Err(STANDARD.decode(bytes?).ok()?),
            }),
        };
        Some(Self { attributes, data })
    }
}

fn is_same(event: &Event, found: &Value) -> bool {
    let has_time = event.time().is_some();
    let expected = Compared::of(&told(event), has_time);
    expected.is_some() && Compared::of(found, has_time) == expected
}

fn written(event: &Event, mode: Mode) -> (HeaderMap, Bytes) {
    match mode {
        Binary => to_http_binary(event).unwrap(),
        Structured => to_http_structured(event).unwrap(),
        Batch => to_http_batch(&[event.clone(), event.clone()]).unwrap(),
    }
}

fn read(message: &Value) -> Result<Vec<Event>, String> {
    let headers = message["headers"].as_object().unwrap().iter().map(|(name, value)| {
        let value = HeaderValue::from_bytes(value.as_str().unwrap().as_bytes()).unwrap();
        (name.parse::<HeaderName>().unwrap(), value)
    });
    let body = STANDARD.decode(message["body"].as_str().unwrap()).unwrap();
    let events = from_http(&headers.collect(), &body.into(), &EventLimits::default());
    events.map(|events| events.into_vec()).map_err(|error| error.to_string())
}

impl Sdk {
    /// What it makes of tasks: for each `ok` with the result, or `error`.
    fn run(&self, tasks: &[Value]) -> Vec<Value> {
        let runtimes =
            std::env::var_os("FUNCTION_GATEWAY_RUNTIMES").expect("FUNCTION_GATEWAY_RUNTIMES names no folder");
        let folder = PathBuf::from(runtimes).join(self.folder);
        let mut sdk = Command::new(self.program[0])
            .args(&self.program[1..])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        sdk.stdin.take().unwrap().write_all(&serde_json::to_vec(tasks).unwrap()).unwrap();
        let output = sdk.wait_with_output().unwrap();
        assert!(output.status.success(), "what it says is in its output above");
        let results: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(results.len(), tasks.len());
        results
    }

    /// Exchanges every event in every mode, both ways.
    fn check(&self) {
        let cases = cases();
        let all: Vec<_> = cases.iter().flat_map(|(case, event)| Mode::ALL.map(|mode| (*case, event, mode))).collect();

        let tasks = all.iter().map(|(_, event, mode)| {
            let (headers, body) = written(event, *mode);
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
            let headers: BTreeMap<_, _> = headers.collect();
            json!({ "do": "read", "mode": mode.as_str(), "headers": headers, "body": STANDARD.encode(body) })
        });
        let mut problems = Vec::new();
        for ((case, event, mode), result) in all.iter().zip(self.run(&tasks.collect::<Vec<_>>())) {
            let events = result["ok"].as_array().cloned().unwrap_or_default();
            let same = events.len() == mode.count() && events.iter().all(|found| is_same(event, found));
            problems.extend(problem(self.reads, case, *mode, same).map(|problem| format!("reads {problem}: {result}")));
        }

        let tasks = all.iter().map(|(_, event, mode)| {
            json!({ "do": "write", "mode": mode.as_str(), "events": vec![told(event); mode.count()] })
        });
        for ((case, event, mode), result) in all.iter().zip(self.run(&tasks.collect::<Vec<_>>())) {
            let events = result.get("ok").ok_or("it failed".to_owned()).and_then(read);
            let is_same = |found: &Event| is_same(event, &told(found));
            let same = events.as_ref().is_ok_and(|events| events.len() == mode.count() && events.iter().all(is_same));
            let problem = problem(self.writes, case, *mode, same);
            problems.extend(problem.map(|problem| format!("writes {problem}: {result}, read as {events:?}")));
        }
        assert!(problems.is_empty(), "{}\n{}", self.folder, problems.join("\n"));
    }
}

/// Whether a case came out otherwise than is written here.
fn problem(deviations: &[Deviation], case: &str, mode: Mode, same: bool) -> Option<String> {
    let known = deviations.iter().find(|known| known.cases.contains(&case) && known.modes.contains(&mode));
    match known {
        None if !same => Some(format!("{case:?} otherwise, {}", mode.as_str())),
        Some(known) if same => {
            Some(format!("{case:?} by now, {}; it was said that it {}", mode.as_str(), known.reason))
        }
        _ => None,
    }
}

#[test]
#[ignore = "needs the runtimes that `cargo xtask test` installs"]
fn events_are_exchanged_with_a_real_runtime_of_the_sdk_for_python() {
    PYTHON.check();
}

#[test]
#[ignore = "needs the runtimes that `cargo xtask test` installs"]
fn events_are_exchanged_with_a_real_runtime_of_the_sdk_for_javascript() {
    JAVASCRIPT.check();
}
