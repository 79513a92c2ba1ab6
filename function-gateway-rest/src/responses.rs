//! The problems that operations document, as groups.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response::Response};
use utoipa::{IntoResponses, PartialSchema as _};

use crate::problem::ProblemDocument;

/// An answer with a problem document.
fn problem(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", content).build().into()
}

macro_rules! problems {
    ($($(#[doc = $doc:literal])+ $name:ident: $($status:literal $description:literal),+;)+) => {
    $(
        $(#[doc = $doc])+
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let named = |status: &str| Ref::from_response_name(format!("{}{status}", stringify!($name))).into();
                [$(($status.to_owned(), named($status))),+].into()
            }
        }
    )+

        /// All of them, by the names under which they stand among the document's responses.
        pub(crate) fn problem_responses() -> BTreeMap<String, RefOr<Response>> {
            [$($((concat!(stringify!($name), $status).to_owned(), problem($description))),+),+].into()
        }
    };
}

problems! {
    /// What every guarded operation may answer.
    Guarded:
        "400" "The request is not right; it says where",
        "401" "Nothing, or nothing valid, says who calls",
        "403" "The caller may not do this",
        "500" "A fault of the gateway",
        "503" "The gateway can't do it now";
    /// What reading the metrics may answer.
    Scraped:
        "401" "Nothing, or nothing valid, says who calls",
        "403" "The caller may not do this",
        "500" "A fault of the gateway",
        "501" "The host offers none",
        "503" "The gateway can't do it now";
    /// What an operation on something that has a name may answer.
    Found:
        "404" "There is no such thing in the caller's tenant";
    /// What an operation that reads a body may answer.
    Reads:
        "408" "The body did not come in time",
        "413" "The body is larger than the limit that the answer names",
        "499" "The client closed its side before the body was whole";
    /// What an operation that reads a body of one type may answer.
    Typed:
        "415" "The body is of a type that is not read here";
    /// What an operation that takes a specification may answer.
    Specified:
        "422" "The specification is not valid; all violations are listed";
    /// What a change of something that is there may answer.
    Changes:
        "409" "Somebody else changed it at the same time, or it is being deleted",
        "412" "It is not in the state that was made a condition";
    /// What an operation that asks the engine may answer.
    Asks:
        "502" "The engine answered what it must not, as its driver says",
        "504" "The engine took too long, as its driver says";
    /// What an operation that submits an execution may answer.
    Submits:
        "408" "The body did not come in time",
        "409" "There is an execution of the id already",
        "413" "The payload is larger than the limit that the answer names",
        "422" "The payload is not what the function takes; or something else was sent under the key",
        "429" "A limit is reached, which the answer names; `Retry-After` says when to come again",
        "499" "The client closed its side before the payload was whole",
        "501" "This gateway has no queue; or the name has an alias, which are reserved",
        "504" "It could not be accepted in the caller's time";
    /// What an operation on the queue may answer.
    Queued:
        "501" "This gateway has no queue";
    /// What an operation on events may answer.
    Brokered:
        "501" "This gateway takes no events";
    /// What an operation that not every driver offers may answer.
    Optional:
        "501" "The driver does not offer this";
}

/// The name under which [`ProblemDocument`] stands among the document's schemas.
pub(crate) fn problem_schema() -> (String, RefOr<utoipa::openapi::Schema>) {
    ("Problem".to_owned(), ProblemDocument::schema())
}
