//! The filters of subscriptions, as the CloudEvents Subscriptions API has them.

use std::collections::BTreeMap;
use std::fmt;

use function_gateway_core::Result;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

use crate::violations::{Violations, member};
use crate::{AttributeName, Event, EventString};

const INVALID: &str = "the filters are not valid";

/// The filters of a subscription. An event matches where it matches all of them, so that none at all match every event.
///
/// ```
/// use function_gateway_events::{Event, Filters};
/// use serde_json::json;
///
/// let filters = Filters::from_value(&json!([
///     {"prefix": {"type": "com.example.order."}},
///     {"not": {"any": [{"exact": {"subject": "test"}}, {"suffix": {"source": "/staging"}}]}},
/// ]))?;
/// let event = Event::builder().id("1").source("/shop").event_type("com.example.order.created");
/// assert!(filters.matches(&event.clone().build()?));
/// assert!(!filters.matches(&event.subject("test").build()?));
///
/// let error = Filters::from_value(&json!([{"any": [{"sql": "type = 'a'"}]}])).unwrap_err();
/// assert_eq!(error.violations()[0].pointer, "/0/any/0/sql");
/// # Ok::<_, function_gateway_core::Error>(())
/// ```
///
/// As JSON it is an array of objects, each with the name of its dialect as the one member. `exact`, `prefix` and `suffix` have
/// an object of attributes, all of which have to match; `all` and `any` an array of filters, `not` a filter. The dialect `sql`
/// (CloudEvents SQL) is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// How deep filters nest, in dialects within each other.
    pub const MAX_DEPTH: usize = 16;
    /// How many filters there are in all, each attribute of `exact`, `prefix` and `suffix` being one.
    pub const MAX_FILTERS: usize = 256;
    /// Size of all values to compare with together, in bytes.
    pub const MAX_VALUE_BYTES: usize = 64 * 1024;

    /// Puts filters together.
    ///
    /// # Errors
    /// [`InvalidArgument`](function_gateway_core::ErrorKind::InvalidArgument) where they are more, deeper or larger than the
    /// constants here allow.
    pub fn new(filters: Vec<Filter>) -> Result<Self> {
        let mut found = Violations::default();
        let mut size = Size::default();
        for filter in &filters {
            filter.measure(1, &mut size);
        }
        size.check(&mut found, "");
        found.or(Some(Self(filters)), INVALID)
    }

    /// Reads filters from JSON.
    ///
    /// # Errors
    /// [`InvalidArgument`](function_gateway_core::ErrorKind::InvalidArgument) with everything that is wrong, as JSON Pointers
    /// from the array.
    pub fn from_value(value: &Value) -> Result<Self> {
        // A value of serde_json can be made a node of, whatever it is.
        Self::from_node(Node::deserialize(value).unwrap_or(Node::Other("nothing")))
    }

    fn from_node(node: Node) -> Result<Self> {
        let mut reader = Reader::default();
        let filters = reader.array(node, "", 1);
        reader.size.check(&mut reader.found, "");
        reader.found.or(filters.map(Self), INVALID)
    }

    /// Whether an event matches.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        self.0.iter().all(|filter| filter.matches(event))
    }

    /// Each filter.
    pub fn iter(&self) -> impl Iterator<Item = &Filter> {
        self.0.iter()
    }

    /// Whether there is none, so that every event matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One filter, in one of the dialects of the CloudEvents Subscriptions API.
///
/// Attributes are compared by their canonical text, case-sensitively. One that the event does not have does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Expression);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Compare(Comparison, BTreeMap<AttributeName, EventString>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Exact,
    Prefix,
    Suffix,
}

impl Comparison {
    fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
        }
    }

    fn holds(self, found: &str, wanted: &str) -> bool {
        match self {
            Self::Exact => found == wanted,
            Self::Prefix => found.starts_with(wanted),
            Self::Suffix => found.ends_with(wanted),
        }
    }
}

impl Filter {
    /// The attribute has this value.
    ///
    /// # Errors
    /// [`InvalidArgument`](function_gateway_core::ErrorKind::InvalidArgument) where an attribute can't have this name, or this
    /// value, or the value is empty.
    pub fn exact(attribute: &str, value: &str) -> Result<Self> {
        Self::compare(Comparison::Exact, attribute, value)
    }

    /// The attribute's value begins like this.
    ///
    /// # Errors
    /// As [`exact`](Self::exact).
    pub fn prefix(attribute: &str, value: &str) -> Result<Self> {
        Self::compare(Comparison::Prefix, attribute, value)
    }

    /// The attribute's value ends like this.
    ///
    /// # Errors
    /// As [`exact`](Self::exact).
    pub fn suffix(attribute: &str, value: &str) -> Result<Self> {
        Self::compare(Comparison::Suffix, attribute, value)
    }

    fn compare(comparison: Comparison, attribute: &str, value: &str) -> Result<Self> {
        let mut reader = Reader::default();
        let attributes = Node::Object(vec![(attribute.to_owned(), Node::Text(value.to_owned()))]);
        let filter = reader.compare(comparison, attributes, &member("", comparison.as_str()));
        reader.found.or(filter, INVALID)
    }

    /// All of these match. There is at least one.
    #[must_use]
    pub fn all(first: Self, others: impl IntoIterator<Item = Self>) -> Self {
        Self(Expression::All(std::iter::once(first).chain(others).collect()))
    }

    /// At least one of these matches.
    #[must_use]
    pub fn any(first: Self, others: impl IntoIterator<Item = Self>) -> Self {
        Self(Expression::Any(std::iter::once(first).chain(others).collect()))
    }

    /// This does not match.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "the name of the dialect")]
    pub fn not(filter: Self) -> Self {
        Self(Expression::Not(Box::new(filter)))
    }

    /// Whether an event matches.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        match &self.0 {
            Expression::Compare(comparison, attributes) => attributes.iter().all(|(name, wanted)| {
                event.attribute(name.as_str()).is_some_and(|found| comparison.holds(&found, wanted.as_str()))
            }),
            Expression::All(filters) => filters.iter().all(|filter| filter.matches(event)),
            Expression::Any(filters) => filters.iter().any(|filter| filter.matches(event)),
            Expression::Not(filter) => !filter.matches(event),
        }
    }

    fn measure(&self, depth: usize, size: &mut Size) {
        if !size.descend(depth) {
            return;
        }
        match &self.0 {
            Expression::Compare(_, attributes) => {
                for value in attributes.values() {
                    size.add_value(value.as_str());
                }
            }
            Expression::All(filters) | Expression::Any(filters) => {
                for filter in filters {
                    filter.measure(depth + 1, size);
                }
            }
            Expression::Not(filter) => filter.measure(depth + 1, size),
        }
    }
}

/// What filters come to.
#[derive(Debug, Default)]
struct Size {
    too_deep: bool,
    filters: usize,
    value_bytes: usize,
}

impl Size {
    /// Counts a filter at a depth; false where it is not to be looked into any more.
    fn descend(&mut self, depth: usize) -> bool {
        self.filters += 1;
        self.too_deep |= depth > Filters::MAX_DEPTH;
        depth <= Filters::MAX_DEPTH && self.filters <= Filters::MAX_FILTERS
    }

    fn add_value(&mut self, value: &str) {
        self.filters += 1;
        self.value_bytes += value.len();
    }

    fn check(&self, found: &mut Violations, at: &str) {
        if self.too_deep {
            found.add(at, format!("nests deeper than {} filters", Filters::MAX_DEPTH));
        }
        if self.filters > Filters::MAX_FILTERS {
            found.add(at, format!("has more than {} filters", Filters::MAX_FILTERS));
        }
        if self.value_bytes > Filters::MAX_VALUE_BYTES {
            found.add(at, format!("has values of more than {} bytes together", Filters::MAX_VALUE_BYTES));
        }
    }
}

/// JSON as it stands, the same name twice included: of two dialects in one object, a map would silently drop one.
enum Node {
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    Text(String),
    Other(&'static str),
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Object(_) => "an object",
            Self::Array(_) => "an array",
            Self::Text(_) => "a string",
            Self::Other(kind) => kind,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Other("a boolean"))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Other("a number"))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Other("a number"))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Other("a number"))
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Other("null"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = items.next_element()? {
                    nodes.push(node);
                }
                Ok(Node::Array(nodes))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Object(members))
            }
        }

        deserializer.deserialize_any(Collect)
    }
}

/// Makes filters of JSON, and gathers what is wrong.
#[derive(Default)]
struct Reader {
    found: Violations,
    size: Size,
}

impl Reader {
    fn array(&mut self, node: Node, at: &str, depth: usize) -> Option<Vec<Filter>> {
        let Node::Array(items) = node else {
            self.found.add(at, format!("is {}, and must be an array of filters", node.kind()));
            return None;
        };
        let filters = items.into_iter().enumerate();
        Some(filters.filter_map(|(index, item)| self.filter(item, &format!("{at}/{index}"), depth)).collect())
    }

    fn filter(&mut self, node: Node, at: &str, depth: usize) -> Option<Filter> {
        if !self.size.descend(depth) {
            return None;
        }
        let Node::Object(members) = node else {
            self.found.add(at, format!("is {}, and must be an object with a dialect", node.kind()));
            return None;
        };
        let [(dialect, inner)] = <[_; 1]>::try_from(members)
            .map_err(|members| {
                let reason = format!("has {} members, and must have one: the dialect", members.len());
                self.found.add(at, reason);
            })
            .ok()?;
        let at = member(at, &dialect);
        match &*dialect {
            "exact" => self.compare(Comparison::Exact, inner, &at),
            "prefix" => self.compare(Comparison::Prefix, inner, &at),
            "suffix" => self.compare(Comparison::Suffix, inner, &at),
            "all" => self.at_least_one(inner, &at, depth).map(Expression::All).map(Filter),
            "any" => self.at_least_one(inner, &at, depth).map(Expression::Any).map(Filter),
            "not" => self.filter(inner, &at, depth + 1).map(Filter::not),
            "sql" => {
                self.found
                    .add(at, "is CloudEvents SQL, which is not supported: exact, prefix, suffix, all, any and not are");
                None
            }
            _ => {
                self.found.add(at, "is no dialect that is supported: exact, prefix, suffix, all, any and not are");
                None
            }
        }
    }

    fn at_least_one(&mut self, node: Node, at: &str, depth: usize) -> Option<Vec<Filter>> {
        if matches!(&node, Node::Array(items) if items.is_empty()) {
            self.found.add(at, "is empty, and must have a filter");
            return None;
        }
        self.array(node, at, depth + 1)
    }

    fn compare(&mut self, comparison: Comparison, node: Node, at: &str) -> Option<Filter> {
        let Node::Object(members) = node else {
            self.found.add(at, format!("is {}, and must be an object of attributes", node.kind()));
            return None;
        };
        if members.is_empty() {
            self.found.add(at, "is empty, and must have an attribute");
        }
        let mut attributes = BTreeMap::new();
        for (name, value) in members {
            if let Err(reason) = self.attribute(&mut attributes, &name, value) {
                self.found.add(member(at, &name), reason);
            }
        }
        Some(Filter(Expression::Compare(comparison, attributes)))
    }

    fn attribute(
        &mut self,
        attributes: &mut BTreeMap<AttributeName, EventString>,
        name: &str,
        value: Node,
    ) -> Result<(), String> {
        let Node::Text(value) = value else { return Err(format!("is {}, and must be a string", value.kind())) };
        self.size.add_value(&value);
        let name = AttributeName::new(name).map_err(|error| format!("is no attribute: the name {}", error.reason()))?;
        if value.is_empty() {
            return Err("is empty".to_owned());
        }
        let value = EventString::new(value).map_err(|error| format!("{}, which no attribute does", error.reason()))?;
        match attributes.insert(name, value) {
            None => Ok(()),
            Some(_) => Err("is there more than once".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Filters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_node(Node::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Filters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match &self.0 {
            Expression::Compare(comparison, attributes) => {
                let attributes: BTreeMap<_, _> =
                    attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                map.serialize_entry(comparison.as_str(), &attributes)?;
            }
            Expression::All(filters) => map.serialize_entry("all", filters)?,
            Expression::Any(filters) => map.serialize_entry("any", filters)?,
            Expression::Not(filter) => map.serialize_entry("not", filter)?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn event() -> Event {
        Event::builder()
            .id("myId")
            .source("https://example.com/a")
            .event_type("com.github.push")
            .subject("Subject")
            .extension("myext", "customext")
            .extension("count", 17)
            .extension("empty", "")
            .build()
            .unwrap()
    }

    fn matches(filter: &Value) -> bool {
        Filters::from_value(&json!([filter])).unwrap().matches(&event())
    }

    fn problems(filters: &Value) -> Vec<(String, String)> {
        let error = Filters::from_value(filters).unwrap_err();
        error.violations().iter().map(|found| (found.pointer.clone(), found.reason.clone())).collect()
    }

    #[test]
    fn each_dialect_compares_as_the_subscriptions_api_says() {
        for (filter, expected) in [
            (json!({"exact": {"type": "com.github.push"}}), true),
            (json!({"exact": {"type": "com.github.Push"}}), false),
            (json!({"exact": {"type": "com.github.push", "id": "myId"}}), true),
            (json!({"exact": {"type": "com.github.push", "id": "other"}}), false),
            (json!({"exact": {"specversion": "1.0"}}), true),
            (json!({"exact": {"count": "17"}}), true),
            (json!({"exact": {"missing": "x"}}), false),
            (json!({"not": {"exact": {"missing": "x"}}}), true),
            (json!({"prefix": {"source": "https://", "myext": "custom"}}), true),
            (json!({"prefix": {"source": "http://"}}), false),
            (json!({"prefix": {"empty": "x"}}), false),
            (json!({"suffix": {"type": ".push", "subject": "ject"}}), true),
            (json!({"suffix": {"type": ".pull"}}), false),
            (json!({"all": [{"exact": {"id": "myId"}}, {"suffix": {"count": "7"}}]}), true),
            (json!({"all": [{"exact": {"id": "myId"}}, {"suffix": {"count": "8"}}]}), false),
            (json!({"any": [{"exact": {"id": "other"}}, {"suffix": {"count": "7"}}]}), true),
            (json!({"any": [{"exact": {"id": "other"}}]}), false),
        ] {
            assert_eq!(matches(&filter), expected, "{filter}");
        }
    }

    #[test]
    fn no_filter_matches_every_event() {
        assert!(Filters::default().matches(&event()));
        assert!(Filters::from_value(&json!([])).unwrap().is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_place() {
        let found = problems(&json!([
            {"exact": {}},
            {"exact": {"type": ""}},
            {"prefix": {"my-ext": "x", "data": "y", "id": 5}},
            {"suffix": {"type": "a\nb"}},
            {"all": []},
            {"any": [{"not": [{"exact": {"id": "1"}}]}, "x"]},
            {"exact": {"id": "1"}, "prefix": {"id": "1"}},
            {},
            {"sql": "type = 'x'"},
            {"regex/1": {}},
            null,
        ]));
        let places: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(
            places,
            [
                "/0/exact",
                "/1/exact/type",
                "/2/prefix/data",
                "/2/prefix/id",
                "/2/prefix/my-ext",
                "/3/suffix/type",
                "/4/all",
                "/5/any/0/not",
                "/5/any/1",
                "/6",
                "/7",
                "/8/sql",
                "/9/regex~11",
                "/10"
            ]
        );
        assert!(found.iter().any(|(_, reason)| reason.starts_with("is CloudEvents SQL, which is not supported")));
        assert_eq!(problems(&json!({}))[0].1, "is an object, and must be an array of filters");
    }

    #[test]
    fn a_name_that_is_there_twice_is_not_dropped() {
        for text in [r#"[{"exact": {"id": "1"}, "exact": {"id": "2"}}]"#, r#"[{"exact": {"id": "1", "id": "2"}}]"#] {
            assert!(serde_json::from_str::<Filters>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_number_and_size_are_bounded() {
        let nested = |depth: usize| (1..depth).fold(Filter::exact("id", "1").unwrap(), |inner, _| Filter::not(inner));
        for (depth, good) in [(Filters::MAX_DEPTH, true), (Filters::MAX_DEPTH + 1, false), (5000, false)] {
            let filters = Filters::new(vec![nested(depth)]);
            assert_eq!(filters.is_ok(), good, "{depth}");
        }
        let deep = serde_json::to_value(nested(Filters::MAX_DEPTH + 1)).unwrap();
        assert_eq!(problems(&json!([deep])), [(String::new(), "nests deeper than 16 filters".to_owned())]);
        // Each is two: the filter, and its attribute.
        let many = |count: usize| Filters::new(vec![Filter::exact("id", "1").unwrap(); count]);
        assert!(many(Filters::MAX_FILTERS / 2).is_ok() && many(Filters::MAX_FILTERS / 2 + 1).is_err());
        let large = |size: usize| Filters::new(vec![Filter::exact("id", &"x".repeat(size)).unwrap()]);
        assert!(large(Filters::MAX_VALUE_BYTES).is_ok() && large(Filters::MAX_VALUE_BYTES + 1).is_err());
    }

    fn filters() -> impl Strategy<Value = Filter> {
        let attribute = prop_oneof![Just("id"), Just("type"), Just("subject"), Just("a")];
        let leaf = (0..3, attribute, "[ab]{1,2}").prop_map(|(dialect, name, value)| match dialect {
            0 => Filter::exact(name, &value).unwrap(),
            1 => Filter::prefix(name, &value).unwrap(),
            _ => Filter::suffix(name, &value).unwrap(),
        });
        leaf.prop_recursive(4, 24, 3, |inner| {
            let some = || (inner.clone(), prop::collection::vec(inner.clone(), 0..3));
            prop_oneof![
                some().prop_map(|(first, others)| Filter::all(first, others)),
                some().prop_map(|(first, others)| Filter::any(first, others)),
                inner.clone().prop_map(Filter::not),
            ]
        })
    }

    fn events() -> impl Strategy<Value = Event> {
        ("[ab]{1,3}", "[ab]{1,3}", prop::option::of("[ab]{1,3}"), prop::option::of("[ab]{0,3}")).prop_map(
            |(id, kind, subject, extension)| {
                let mut event = Event::builder().id(id).source("/s").event_type(kind);
                if let Some(subject) = subject {
                    event = event.subject(subject);
                }
                if let Some(extension) = extension {
                    event = event.extension("a", extension.as_str());
                }
                event.build().unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn filters_follow_the_laws_of_logic(
            first in filters(), others in prop::collection::vec(filters(), 0..4), event in events(),
        ) {
            let each: Vec<_> = std::iter::once(&first).chain(&others).cloned().collect();
            let all = Filter::all(first.clone(), others.clone());
            let any = Filter::any(first.clone(), others.clone());
            prop_assert_eq!(Filter::not(Filter::not(first.clone())).matches(&event), first.matches(&event));
            prop_assert_eq!(all.matches(&event), each.iter().all(|filter| filter.matches(&event)));
            prop_assert_eq!(any.matches(&event), each.iter().any(|filter| filter.matches(&event)));
            let negated: Vec<_> = others.iter().cloned().map(Filter::not).collect();
            let none = Filter::all(Filter::not(first), negated);
            prop_assert_eq!(Filter::not(any).matches(&event), none.matches(&event));
            prop_assert_eq!(Filters::new(each).unwrap().matches(&event), all.matches(&event));
        }

        #[test]
        fn what_is_exact_is_a_prefix_and_a_suffix(event in events(), value in "[ab]{1,3}") {
            if Filter::exact("a", &value).unwrap().matches(&event) {
                prop_assert!(Filter::prefix("a", &value).unwrap().matches(&event));
                prop_assert!(Filter::suffix("a", &value).unwrap().matches(&event));
            }
        }

        #[test]
        fn filters_round_trip_in_json(filters in prop::collection::vec(filters(), 0..4)) {
            let filters = Filters::new(filters).unwrap();
            let json = serde_json::to_string(&filters).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Filters>(&json).unwrap(), &filters);
            prop_assert_eq!(&Filters::from_value(&serde_json::from_str(&json).unwrap()).unwrap(), &filters);
        }
    }
}
