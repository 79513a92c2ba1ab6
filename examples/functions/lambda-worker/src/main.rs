//! Greets somebody: a handler for AWS Lambda's runtime for Rust.
//!
//! Takes JSON: `{"name": "Ada"}`. Gives JSON: `{"greeting": "Hello, Ada!"}`. With `{"fail": true}` it gives an error, which
//! the runtime reports with its type and message.
//!
//! Protocol `lambda`. The runtime asks for its calls at the address in `AWS_LAMBDA_RUNTIME_API`. It does not start without
//! `AWS_LAMBDA_FUNCTION_NAME`, `AWS_LAMBDA_FUNCTION_VERSION` and `AWS_LAMBDA_FUNCTION_MEMORY_SIZE`.

use lambda_runtime::{Diagnostic, Error, LambdaEvent, service_fn};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Greet {
    #[serde(default)]
    name: String,
    #[serde(default)]
    fail: bool,
}

async fn greet(event: LambdaEvent<Greet>) -> Result<Value, Diagnostic> {
    eprintln!("greeting for invocation {}", event.context.request_id);
    if event.payload.fail {
        return Err(Diagnostic { error_type: "AskedToFail".into(), error_message: "asked to fail".into() });
    }
    Ok(json!({"greeting": format!("Hello, {}!", event.payload.name)}))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(greet)).await
}
