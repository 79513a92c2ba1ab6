//! The OpenFaaS driver against bare reqwest on the same mock of the OpenFaaS gateway.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark")]

mod against_reqwest;

use against_reqwest::Engine;
use axum::Router;
use function_gateway_openfaas::{OpenFaas, OpenFaasConfig};

fn main() {
    // The name that the driver has for the function does not matter to the mock.
    against_reqwest::run(Engine {
        path: "/function/{name}",
        marks: &[
            ("x-served-by", "openfaas-ce/0.27.14"),
            ("x-start-time", "1795481214518048998"),
            ("x-duration-seconds", "0.001235"),
        ],
        management: Router::new,
        open: |url| Box::new(OpenFaas::new(OpenFaasConfig::new(url)).unwrap()),
        tell: |headers| {
            let id = headers["x-function-invocation-id"].clone();
            headers.insert("x-call-id", id);
        },
    });
}
