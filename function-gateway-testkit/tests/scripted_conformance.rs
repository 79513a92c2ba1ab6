//! The scripted driver keeps the promises of a driver, as an engine that is shared and as one inside the process.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway_core::{
    Body, CallContext, CustomWorkload, DriverRef, DriverRequest, Error, ErrorKind, FaasDriver, FunctionSpec,
    InvokeResponse, Result, Scope, Violation, Workload, call_headers,
};
use function_gateway_testkit::{Behaviour, DriverHarness, Engine, Gate, Handler, Readiness, ScriptedDriver};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use serde_json::{Value, json};

/// The behaviour of a function, as its specification names it: kind and argument.
fn settings(behaviour: &Behaviour) -> Option<Value> {
    let settings = match behaviour {
        Behaviour::Echo | Behaviour::EchoTyped | Behaviour::StreamEcho => json!({"do": "echo"}),
        Behaviour::EchoVariable(name) => json!({"do": "variable", "with": name}),
        Behaviour::Tell => json!({"do": "tell"}),
        Behaviour::Fail => json!({"do": "fail"}),
        Behaviour::Reject => json!({"do": "reject"}),
        Behaviour::Hang => json!({"do": "hang"}),
        Behaviour::Large(bytes) => json!({"do": "large", "with": bytes}),
        Behaviour::Lines(lines) => json!({"do": "lines", "with": lines}),
        Behaviour::Stall => json!({"do": "stall"}),
        Behaviour::BreakOff => json!({"do": "break"}),
        Behaviour::Log(text) => json!({"do": "log", "with": text}),
        Behaviour::Unready => json!({"do": "nothing", "ready": false}),
        Behaviour::Invalid => json!({"do": "nothing", "valid": false}),
        _ => return None,
    };
    Some(settings)
}

fn settings_of(spec: &FunctionSpec) -> &Value {
    match &spec.run {
        Workload::Custom(custom) => &custom.settings,
        other => panic!("not one of these functions: {other:?}"),
    }
}

async fn execute(cx: CallContext, request: DriverRequest) -> Result<InvokeResponse> {
    let spec = request.revision.spec.clone();
    let settings = settings_of(&spec);
    let with = &settings["with"];
    let open = Gate::new();
    open.open();
    let answer = |body: String| Ok(InvokeResponse::new(StatusCode::OK, body));
    let handler = match settings["do"].as_str().unwrap() {
        "echo" => Handler::echo(),
        "fail" => Handler::failing("it went wrong"),
        "reject" => Handler::status(StatusCode::UNPROCESSABLE_ENTITY, "no"),
        "hang" => Handler::hang(),
        "large" => Handler::status(StatusCode::OK, vec![b'x'; with.as_u64().unwrap() as usize]),
        "lines" => Handler::stream((0..with.as_u64().unwrap()).map(|line| format!("{line}\n")), &open),
        "break" => Handler::break_off(["first"], &open),
        "stall" => {
            let first = stream::iter([Ok(Bytes::from("first"))]);
            return Ok(InvokeResponse::new(StatusCode::OK, Body::from_stream(first.chain(stream::pending()))));
        }
        "variable" => {
            let name = with.as_str().unwrap();
            let secret = request.secrets.iter().find(|secret| secret.name == name);
            let secret = secret.map(|secret| secret.secret.expose_str().unwrap().to_owned());
            return answer(secret.or_else(|| spec.env.get(name).cloned()).unwrap_or_default());
        }
        "log" => {
            request.logs.write(format!("{}\n", with.as_str().unwrap()).as_bytes());
            return answer(String::new());
        }
        "tell" => {
            let told: std::collections::BTreeMap<_, _> = call_headers(&cx).into_iter().collect();
            let told = json!({
                "method": request.method.as_str(),
                "path": request.path,
                "query": request.query,
                "invocation_id": told["x-function-invocation-id"],
                "traceparent": told["traceparent"],
                "attempt": told["x-function-attempt"],
                "deadline_ms": told["x-function-deadline-ms"],
            });
            return answer(told.to_string());
        }
        other => return Err(Error::new(ErrorKind::Misconfigured, format!("no such function: {other}"))),
    };
    handler.answer(cx, request).await
}

fn engine() -> Engine {
    let engine = Engine::new();
    engine.on_invoke(Handler::new(execute));
    engine.on_deploy(|revision| match settings_of(&revision.spec)["ready"] {
        Value::Bool(false) => Readiness::Never,
        _ => Readiness::AfterPolls(2),
    });
    engine.on_check(|spec| match settings_of(spec)["valid"] {
        Value::Bool(false) => vec![Violation::new("/run/custom/settings/valid", "must not be false")],
        _ => Vec::new(),
    });
    engine
}

struct Harness {
    engine: Engine,
    scope: Scope,
    secrets_at_deploy: bool,
}

impl Harness {
    fn new(scope: Scope, secrets_at_deploy: bool) -> Self {
        Self { engine: engine(), scope, secrets_at_deploy }
    }

    fn driver_on(&self, engine: &Engine) -> Arc<dyn FaasDriver> {
        Arc::new(ScriptedDriver::on(engine).with_capabilities(|caps| {
            caps.scope = self.scope;
            caps.secrets_at_deploy = self.secrets_at_deploy;
            caps.secrets_per_call = !self.secrets_at_deploy;
            // Without these, their cases look for the refusal.
            caps.scale = self.scope == Scope::Shared;
            caps.logs = self.scope == Scope::Shared;
        }))
    }
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        self.driver_on(&self.engine)
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        let run = CustomWorkload::new("scripted", settings(behaviour)?);
        Some(FunctionSpec::new("scripted".parse().unwrap(), run))
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(match self.scope {
            Scope::Shared => self.driver_on(&self.engine),
            _ => self.driver_on(&engine()),
        })
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        match self.scope {
            Scope::PerProcess => &["secrets_at_each_call_reach_the_function", "shutdown_keeps_what_others_share"],
            _ => &["secrets_at_deployment_reach_the_function"],
        }
    }

    async fn running(&self, target: &DriverRef) -> Option<usize> {
        Some(self.engine.in_flight_of(target))
    }
}

mod shared {
    use super::{Harness, Scope};

    function_gateway_testkit::driver_conformance!(Harness::new(Scope::Shared, false));
}

mod per_process {
    use super::{Harness, Scope};

    function_gateway_testkit::driver_conformance!(Harness::new(Scope::PerProcess, true));
}
