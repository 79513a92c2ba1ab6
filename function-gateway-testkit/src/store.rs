//! Conformance of stores: what [`FunctionStore`](function_gateway_core::FunctionStore),
//! [`InvocationStore`](function_gateway_core::InvocationStore), [`InvocationQueue`](function_gateway_core::InvocationQueue),
//! [`AuditLog`](function_gateway_core::AuditLog), [`ApiKeyStore`](function_gateway_core::ApiKeyStore) and
//! [`DocumentStore`](function_gateway_core::DocumentStore) promise, one case for each promise.
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
//! function_gateway_testkit::document_store_conformance!(open());
//!
//! mod queue {
//!     function_gateway_testkit::invocation_queue_conformance!(super::open());
//! }
//! # fn main() {}
//! ```
//!
//! Each case is a test of its own, with tenants of its own, so all of them can run at the same time against one
//! database, but for those of [`queue`], each of which needs a queue of its own. They need no control of the store's clock.
//! Records and audit events of 1970, and records of functions that have more than
//! [`KEPT_PER_FUNCTION`](records::KEPT_PER_FUNCTION), are deleted there, since retention works across tenants.
#![expect(clippy::expect_used, clippy::panic, reason = "a case fails by a panic, as tests do")]

pub mod audit;
pub mod documents;
pub mod functions;
pub mod keys;
pub mod queue;
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
            records_that_come_together_are_kept_as_they_are
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

/// Makes a test of each case of [`queue`], for the store that a future gives, which also keeps the records.
///
/// Who takes from a queue takes from all of it. So each evaluation of the expression has to give a store with a queue of its
/// own, such as one on a database that is new.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! invocation_queue_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::invocation_queue_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { queue, $attributes $open;
            an_accepted_invocation_is_there_with_its_record
            everything_that_was_submitted_reads_back
            tenants_do_not_see_each_others_invocations
            an_id_is_accepted_once_in_all_tenants
            one_of_many_racing_acceptances_of_an_id_wins
            each_limit_refuses_and_names_itself
            limits_hold_under_a_race
            a_known_key_gives_what_was_sent_first
            a_key_belongs_to_a_function_of_a_tenant
            one_of_many_racing_submissions_of_a_key_wins
            what_is_accepted_with_a_lease_is_taken_by_nobody_else
            what_is_due_later_is_not_taken
            what_is_due_first_is_taken_first
            tenants_take_turns_under_a_flood
            a_take_keeps_to_its_bounds
            the_next_due_time_is_told
            racing_takers_never_get_the_same
            a_lease_that_ran_out_writes_nothing
            a_lease_that_was_taken_over_writes_nothing
            what_was_not_dispatched_is_as_if_it_had_not_been_taken
            what_was_dispatched_comes_back_running
            a_dispatch_makes_the_record_running
            a_dispatch_can_be_repeated
            what_goes_on_waits_again_with_its_progress
            what_has_ended_keeps_its_answer_and_its_final_record
            an_invocation_ends_once
            one_of_many_racing_settlements_wins
            followers_are_accepted_in_the_same_step
            followers_of_a_lost_lease_are_not_accepted
            followers_that_are_there_already_are_left_out
            a_callback_has_no_record
            a_dead_letter_reads_back_with_payload_and_attempts
            dead_letters_are_listed_by_their_death
            a_list_of_dead_letters_stays_whole_while_they_come_and_go
            cursors_of_other_lists_give_no_dead_letters
            a_dead_letter_is_redriven_by_another_invocation
            one_of_many_racing_redrives_wins
            a_redrive_that_is_refused_changes_nothing
            a_purged_dead_letter_is_gone
            a_waiting_invocation_is_taken_by_its_cancellation
            a_running_invocation_is_told_of_its_cancellation
            what_has_ended_is_not_cancelled
            a_taker_or_a_cancellation_gets_an_invocation
            the_depth_counts_what_is_open_and_what_is_dead
            pinned_invocations_are_counted_by_generation
            what_is_past_its_time_is_forgotten
            a_key_is_free_once_its_invocation_is_gone
            arrivals_and_endings_are_told
            large_payloads_and_answers_are_kept
        }
    };
    ($open:expr) => {
        $crate::invocation_queue_conformance! { @with [] $open }
    };
}

/// Makes a test of each case of [`documents`], for the store that a future gives.
///
/// It makes test functions where it stands; put it into a module of its own where their names are in the way. An
/// attribute before the expression, such as `#[ignore = "needs a server"]`, is that of each test.
#[macro_export]
macro_rules! document_store_conformance {
    (#[$attribute:meta] $open:expr) => {
        $crate::document_store_conformance! { @with [#[$attribute]] $open }
    };
    (@with $attributes:tt $open:expr) => {
        $crate::__store_cases! { documents, $attributes $open;
            a_document_reads_back_as_it_was_added
            a_name_is_of_one_document
            names_that_differ_a_little_are_different
            a_replacement_gives_the_next_version
            a_stale_replacement_changes_nothing
            one_of_many_racing_writes_wins
            documents_are_listed_by_name
            a_list_of_documents_stays_whole_while_they_come_and_go
            tenants_do_not_see_each_others_documents
            a_deleted_document_is_gone
            texts_of_documents_are_checked
            cursors_of_other_lists_give_no_documents
        }
    };
    ($open:expr) => {
        $crate::document_store_conformance! { @with [] $open }
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
            include_str!("store/queue.rs"),
            include_str!("store/documents.rs"),
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
