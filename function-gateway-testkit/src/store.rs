//! Conformance of stores: what [`FunctionStore`](function_gateway_core::FunctionStore),
//! [`InvocationStore`](function_gateway_core::InvocationStore), [`AuditLog`](function_gateway_core::AuditLog) and
//! [`ApiKeyStore`](function_gateway_core::ApiKeyStore) promise, one case for each promise.
//!
//! An author adds one line to a test file, with an expression of a future that opens the store. It is evaluated for each
//! case:
//!
//! ```
//! use function_gateway_core::GatewayId;
//! use function_gateway_core::store::memory::MemoryStore;
//!
//! async fn open() -> MemoryStore {
//!     MemoryStore::new(GatewayId::generate())
//! }
//!
//! function_gateway_testkit::function_store_conformance!(open());
//! function_gateway_testkit::invocation_store_conformance!(open());
//! function_gateway_testkit::audit_log_conformance!(open());
//! function_gateway_testkit::api_key_store_conformance!(open());
//! # fn main() {}
//! ```
//!
//! Each case is a test of its own, with tenants of its own, so all of them can run at the same time against one
//! database. They need no control of the store's clock. Records and audit events of 1970, and records of functions that
//! have more than [`KEPT_PER_FUNCTION`](records::KEPT_PER_FUNCTION), are deleted there, since retention works across tenants.
#![expect(clippy::expect_used, clippy::panic, reason = "a case fails by a panic, as tests do")]

pub mod audit;
pub mod functions;
pub mod keys;
pub mod records;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;

use function_gateway_core::{
    Cursor, CursorKind, DriverRef, ErrorKind, Function, FunctionId, FunctionKey, FunctionSpec, GatewayId, Generation,
    Page, PageRequest, PrincipalId, ProcessWorkload, Result, Revision, RevisionReason, TenantId, Timestamp,
};

/// Makes a test of each case of [`functions`], for the store that a future gives.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! function_store_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::function_store_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { functions, $attributes $open;
            a_gateway_keeps_its_identity
            a_function_reads_back_as_it_was_created
            a_name_is_taken_once_in_a_tenant
            a_first_revision_of_another_function_is_refused
            tenants_do_not_see_each_other
            names_that_differ_in_case_or_blanks_are_different
            an_update_gives_the_next_version
            a_stale_update_changes_nothing
            an_update_of_nothing_is_refused
            an_update_of_a_namesake_is_refused
            one_of_many_racing_updates_wins
            an_update_adds_its_revision
            a_revision_never_changes
            revisions_are_listed_newest_first
            a_list_goes_by_name_over_many_pages
            a_list_stays_whole_while_functions_come_and_go
            every_filter_holds
            filters_hold_together_over_pages
            a_prefix_is_plain_text
            cursors_of_other_lists_are_refused
            a_lease_has_one_holder
            one_of_many_takes_a_lease
            a_lease_runs_out
            a_lease_is_prolonged_from_now
            a_lease_that_ran_out_writes_nothing
            a_lease_that_was_taken_over_writes_nothing
            a_lease_that_was_given_back_is_free
            a_status_is_written_with_lease_and_version
            a_deletion_leaves_nothing
            a_stale_deletion_changes_nothing
            a_name_can_be_used_again
            the_longest_due_come_first
            a_scan_reads_all_tenants
        }
    };
    ($open:expr) => {
        $crate::function_store_conformance! { @with [] $open }
    };
}

/// Makes a test of each case of [`records`], for the store that a future gives.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! invocation_store_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::invocation_store_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { records, $attributes $open;
            a_record_reads_back_as_it_was_begun_and_finished
            an_execution_can_finish_without_having_begun
            an_id_begins_once_in_all_tenants
            a_final_record_never_changes
            a_record_of_another_function_is_not_overwritten
            states_are_checked
            tenants_do_not_see_each_others_records
            records_are_listed_newest_first
            a_list_of_records_stays_whole_while_more_come_in
            every_record_filter_holds
            record_filters_hold_together_over_pages
            records_are_found_by_the_labels_of_their_functions
            cursors_of_other_lists_give_no_records
            many_executions_finish_at_once
            one_of_many_racing_ends_wins
            what_is_flushed_is_kept
            statistics_count_each_execution_once
            statistics_go_by_whole_minutes
            quantiles_are_within_5_percent
            statistics_outlive_records
            retention_goes_by_age
            retention_goes_by_count
            no_retention_deletes_nothing
            figures_go_by_their_age
        }
    };
    ($open:expr) => {
        $crate::invocation_store_conformance! { @with [] $open }
    };
}

/// Makes a test of each case of [`audit`], for the log that a future gives.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! audit_log_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::audit_log_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { audit, $attributes $open;
            an_event_reads_back_as_it_was_appended
            an_id_is_of_one_event_in_all_tenants
            events_are_listed_newest_first
            a_list_of_events_stays_whole_while_more_come_in
            tenants_do_not_see_each_others_events
            every_audit_filter_holds
            audit_filters_hold_together_over_pages
            many_events_come_in_at_once
            audit_retention_goes_by_age
            no_retention_deletes_no_events
            cursors_of_other_lists_give_no_events
        }
    };
    ($open:expr) => {
        $crate::audit_log_conformance! { @with [] $open }
    };
}

/// Makes a test of each case of [`keys`], for the store that a future gives.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! api_key_store_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::api_key_store_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { keys, $attributes $open;
            a_key_reads_back_as_it_was_added
            an_id_is_of_one_key_in_all_tenants
            keys_are_listed_newest_first
            a_list_of_keys_stays_whole_while_more_are_added
            tenants_do_not_see_each_others_keys
            a_revocation_keeps_its_first_time
            one_of_many_racing_revocations_wins
            a_revocation_of_nothing_is_refused
            many_keys_are_added_at_once
            cursors_of_other_lists_give_no_keys
        }
    };
    ($open:expr) => {
        $crate::api_key_store_conformance! { @with [] $open }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __store_cases {
    ($suite:ident, $attributes:tt $open:expr; $($case:ident)+) => {
        $($crate::__store_case! { $suite, $attributes $open; $case })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __store_case {
    ($suite:ident, [$($attribute:tt)*] $open:expr; $case:ident) => {
        #[test]
        $($attribute)*
        fn $case() {
            $crate::store::__block_on(async {
                let store = ::std::sync::Arc::new($open.await);
                $crate::store::$suite::$case(store).await;
            });
        }
    };
}

/// Runs a case on a runtime of its own, with more than one thread, so that races are real.
#[doc(hidden)]
pub fn __block_on(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    runtime.expect("a runtime starts").block_on(case);
}

/// The lists that there are.
const CURSORS: [CursorKind; 8] = [
    CursorKind::Functions,
    CursorKind::Revisions,
    CursorKind::Records,
    CursorKind::Scan,
    CursorKind::ApiKeys,
    CursorKind::Audit,
    CursorKind::DeadLetters,
    CursorKind::Documents,
];

/// A tenant that no other case knows.
fn tenant() -> TenantId {
    valid(TenantId::new(format!("t-{}", FunctionId::generate())))
}

fn valid<T, E: Debug>(name: Result<T, E>) -> T {
    name.expect("the name is valid")
}

fn principal(name: &str) -> PrincipalId {
    valid(PrincipalId::new(name))
}

fn key(tenant: &TenantId, name: &str) -> FunctionKey {
    FunctionKey::new(tenant.clone(), valid(name.parse()))
}

fn spec() -> FunctionSpec {
    FunctionSpec::new(valid("local".parse()), ProcessWorkload::new("cat"))
}

/// A function that is not due, with its first revision.
fn function(key: &FunctionKey) -> (Function, Revision) {
    let now = Timestamp::now();
    let reason = RevisionReason::Created;
    let created = (now, principal("owner"));
    let revision = Revision::new(key.clone(), FunctionId::generate(), Generation::FIRST, spec(), created, reason);
    let gateway = valid(GatewayId::new("conformance"));
    let target = DriverRef::plain(&gateway, &revision);
    let mut function = Function::new(&revision, target);
    function.status.reconcile_at = None;
    (function, revision)
}

/// The same function with a new generation, whose description is as given.
fn successor(function: &Function, description: &str) -> (Function, Revision) {
    let mut function = function.clone();
    function.generation = function.generation.next();
    function.spec.description = description.to_owned();
    let created = (Timestamp::now(), principal("editor"));
    let reason = RevisionReason::Updated;
    let (key, spec) = (function.key.clone(), function.spec.clone());
    let revision = Revision::new(key, function.id, function.generation, spec, created, reason);
    (function, revision)
}

/// The kind of error of what must not succeed.
fn refused<T: Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("this must be refused").kind()
}

/// Reads a list to its end, as a client does that knows cursors as text.
async fn all_pages<T: Debug>(limit: usize, mut read: impl AsyncFnMut(PageRequest) -> Page<T>) -> Vec<T> {
    let mut items = Vec::new();
    let mut request = PageRequest::first(limit);
    let mut cursors = BTreeSet::new();
    loop {
        let page = read(request).await;
        assert!(page.items.len() <= limit, "a page of {limit} holds {} items", page.items.len());
        assert_eq!(page.unreadable, []);
        items.extend(page.items);
        let Some(next) = page.next else { return items };
        assert!(cursors.insert(next.to_string()), "the list goes in circles");
        request = PageRequest::first(limit).after(Cursor::from_text(next.as_str()));
    }
}

#[cfg(test)]
mod tests {
    /// Every case of a suite stands in its macro, so that none is forgotten.
    #[test]
    fn the_macros_name_every_case() {
        let macros = include_str!("store.rs");
        for suite in [
            include_str!("store/functions.rs"),
            include_str!("store/records.rs"),
            include_str!("store/audit.rs"),
            include_str!("store/keys.rs"),
        ] {
            let cases: Vec<_> =
                suite.split("pub async fn ").skip(1).filter_map(|case| case.split('(').next()).collect();
            assert!(cases.len() >= 10);
            for case in cases {
                assert!(macros.contains(&format!("            {case}\n")), "{case} is in no macro");
            }
        }
    }
}
