//! The conformance suite for drivers: a case for each promise of [`FaasDriver`]'s documentation.
//!
//! An author of a driver implements [`DriverHarness`] and writes one line; each case becomes a test:
//!
//! ```
//! use std::sync::Arc;
//! use async_trait::async_trait;
//! use function_gateway_core::{CustomWorkload, FaasDriver, FunctionSpec};
//! use function_gateway_testkit::{Behaviour, DriverHarness, ScriptedDriver, driver_conformance};
//!
//! struct Harness;
//!
//! #[async_trait]
//! impl DriverHarness for Harness {
//!     async fn driver(&self) -> Arc<dyn FaasDriver> {
//!         Arc::new(ScriptedDriver::new())
//!     }
//!
//!     fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
//!         match behaviour {
//!             Behaviour::Echo => {
//!                 let run = CustomWorkload::new("scripted", serde_json::Value::Null);
//!                 Some(FunctionSpec::new("scripted".parse().unwrap(), run))
//!             }
//!             _ => None,
//!         }
//!     }
//! }
//!
//! driver_conformance!(Harness);
//! # fn main() {}
//! ```
//!
//! A case whose behaviour the harness does not offer, or whose capability the driver does not declare, is skipped and
//! says so: `SKIPPED <case>: <why>` on standard error. With `FUNCTION_GATEWAY_CONFORMANCE_STRICT=1` in the environment a
//! skip fails, but for those that the harness [expects](DriverHarness::expected_skips).

#![expect(clippy::panic, reason = "a case fails by panicking")]

mod bench;
pub mod cases;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::{DriverRef, FaasDriver, FunctionSpec};
use futures_util::FutureExt as _;

pub use bench::Bench;

/// What a function of the suite does. A harness says by which specification its driver runs one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behaviour {
    /// Answers with its payload.
    Echo,
    /// Answers with its payload and its payload's content type, where the protocol carries one both ways.
    EchoTyped,
    /// Answers with the value of the environment variable of this name, which a case sets as `env` or as a secret.
    EchoVariable(String),
    /// Answers with a JSON object of what it was told of its call, each as text and absent where the protocol does not
    /// tell it: `method`, `path`, `query`, `invocation_id`, `traceparent`, `attempt`, `deadline_ms`.
    Tell,
    /// Fails.
    Fail,
    /// Refuses the call as the caller's mistake, where the protocol can say so.
    Reject,
    /// Never answers.
    Hang,
    /// Answers with this number of bytes.
    Large(u64),
    /// Streams the lines `0`, `1`, … up to this number, exclusive, and ends. Ends of lines are a single `\n`.
    Lines(u32),
    /// Streams `first`, and then neither goes on nor ends.
    Stall,
    /// Streams `first`, and then breaks off before its answer is complete.
    BreakOff,
    /// Streams its payload back as it comes.
    StreamEcho,
    /// Writes this text and an end of line to its log, and answers.
    Log(String),
    /// Can be deployed, and never becomes ready.
    Unready,
    /// Meets the driver's capabilities, but has a setting that the driver's `check` refuses.
    Invalid,
}

/// What the suite needs to know of a driver. Each case gets a harness of its own.
#[async_trait]
pub trait DriverHarness: Send + Sync + 'static {
    /// The driver under test; asked for once. A probe by the suite follows.
    async fn driver(&self) -> Arc<dyn FaasDriver>;

    /// The specification of a function that behaves so; `None` where the driver can't run one. The suite adds to it what
    /// a case needs: environment, secrets, `streaming`.
    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec>;

    /// The driver of another process of the same gateway: on the same engine where the driver's scope is shared, on an
    /// engine of its own where it is per process. `None` where a test can't have one.
    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        None
    }

    /// How many calls of a target its engine is executing; `None` where a test can't tell.
    async fn running(&self, _target: &DriverRef) -> Option<usize> {
        None
    }

    /// The cases that this harness is known to skip, since its driver or its protocol can't do what they need. They stay
    /// skipped where skips are to fail; one of them that runs after all fails then.
    fn expected_skips(&self) -> &'static [&'static str] {
        &[]
    }

    /// How long to wait for what has to happen, such as a function getting ready. A case is given up after four times
    /// that.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// Why a case was not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped(String);

impl Skipped {
    /// Gives the reason.
    #[must_use]
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// What a case that does not fail says. One that fails panics.
pub type CaseResult = Result<(), Skipped>;

/// Runs one case on a runtime of its own, then removes what it deployed. [`driver_conformance!`](crate::driver_conformance)
/// makes a test of each case with it.
///
/// # Panics
/// Where the case fails, does not end in time, or is skipped and skips are to fail.
pub fn run<H: DriverHarness>(
    name: &str,
    harness: impl Future<Output = H>,
    case: impl AsyncFnOnce(&Bench) -> CaseResult,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    let (result, expected) = runtime.block_on(async {
        let harness = harness.await;
        let limit = harness.patience() * 4;
        let expected = harness.expected_skips().contains(&name);
        let bench = Bench::new(Arc::new(harness)).await;
        let result = AssertUnwindSafe(tokio::time::timeout(limit, case(&bench))).catch_unwind().await;
        bench.clean_up().await;
        let result = result.map(|ended| ended.unwrap_or_else(|_| panic!("{name} did not end within {limit:?}")));
        (result, expected)
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(Ok(())) => assert!(!(expected && is_strict()), "{name} ran, although the harness expects to skip it"),
        Ok(Err(Skipped(why))) => skipped(name, &why, expected),
        Err(panic) => resume_unwind(panic),
    }
}

fn is_strict() -> bool {
    std::env::var_os("FUNCTION_GATEWAY_CONFORMANCE_STRICT").is_some_and(|value| value == "1")
}

fn skipped(name: &str, why: &str, expected: bool) {
    use std::io::Write as _;

    // Written past the capture of a passing test's output, so that it is seen.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
    assert!(expected || !is_strict(), "{name} was skipped, and skips are to fail: {why}");
}

/// Makes a test of each case of the [conformance suite for drivers](crate::driver).
///
/// It takes an expression that makes a [`DriverHarness`], evaluated for each case; it may use `.await`. Attributes after it are
/// those of each test: `driver_conformance!(Live::new(), #[ignore = "needs an engine"])`.
#[macro_export]
macro_rules! driver_conformance {
    ($harness:expr $(, #[$attribute:meta])*) => {
        $crate::__driver_cases! { ($harness) ($(#[$attribute])*)
            info_names_a_kind_and_its_protocols
            an_unknown_protocol_has_no_capabilities
            probe_names_the_engine
            references_are_pure_and_distinct
            check_accepts_what_deploy_takes
            check_names_what_it_refuses
            a_target_is_missing_before_deploy_and_after_remove
            deploy_can_be_repeated
            deploy_can_run_twice_at_a_time
            what_was_removed_can_be_deployed_again
            a_dropped_deploy_converges
            a_dropped_remove_converges
            remove_can_be_repeated
            remove_of_what_never_was_is_ok
            generations_stand_side_by_side
            what_cannot_become_ready_never_is
            a_list_holds_only_what_belongs_to_its_gateway
            a_list_holds_only_what_belongs_to_its_function
            another_process_sees_what_the_scope_says
            another_process_can_deploy_and_remove_again
            echo_answers_with_the_payload
            an_empty_payload_passes
            a_payload_of_1_mib_passes
            content_types_pass_both_ways
            method_path_and_query_reach_the_function
            the_call_is_told_to_the_function
            environment_reaches_the_function
            a_failing_function_is_an_answer
            a_refusing_function_is_an_answer
            an_answer_at_the_limit_passes
            an_answer_over_the_limit_is_refused
            sixteen_calls_at_a_time_keep_apart
            a_call_that_hangs_holds_up_no_other
            a_call_to_what_was_never_deployed_is_not_sent
            a_call_to_what_was_removed_is_not_sent
            secrets_at_deployment_reach_the_function
            secrets_at_each_call_reach_the_function
            secrets_are_never_shown
            a_streamed_answer_arrives_whole
            a_streamed_answer_arrives_as_it_comes
            a_streamed_payload_arrives_as_it_comes
            a_stream_that_breaks_off_says_so
            dropping_a_call_stops_the_function
            dropping_an_answer_stops_the_function
            a_deadline_stops_the_function
            removing_a_target_stops_its_calls
            the_log_of_a_call_is_told
            logs_are_read_or_refused
            scaling_works_or_is_refused
            shutdown_can_be_repeated
            no_call_is_taken_after_shutdown
            shutdown_lets_calls_end_in_time
            shutdown_stops_calls_at_its_deadline
            shutdown_keeps_what_others_share
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __driver_cases {
    ($harness:tt $attributes:tt $($case:ident)+) => {
        $($crate::__driver_case! { $harness $attributes $case })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __driver_case {
    (($harness:expr) ($(#[$attribute:meta])*) $case:ident) => {
        #[test]
        $(#[$attribute])*
        fn $case() {
            $crate::driver::run(stringify!($case), async { $harness }, $crate::driver::cases::$case);
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_macro() {
        let cases = include_str!("driver/cases.rs").lines();
        let cases = cases.filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next());
        let source = include_str!("driver.rs");
        let missing: Vec<_> = cases.filter(|case| !source.lines().any(|line| line.trim() == *case)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
