//! The SQL stores, each on its own database.
//!
//! What needs a server is below `on_server`; `cargo xtask test` starts servers and runs it, and
//! [`common`] has the variables that name others.

#[cfg(test)]
mod common;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod migrations;
#[cfg(test)]
mod outlived;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod recording;
#[cfg(test)]
mod sharing;

#[cfg(test)]
mod on_sqlite {
    use crate::common::{Database, opened};
    use crate::{crashes, faults, migrations, recording, sharing};

    function_gateway_testkit::function_store_conformance!(opened(Database::sqlite()));
    function_gateway_testkit::invocation_store_conformance!(opened(Database::sqlite()));
    function_gateway_testkit::audit_log_conformance!(opened(Database::sqlite()));
    function_gateway_testkit::api_key_store_conformance!(opened(Database::sqlite()));
    function_gateway_testkit::document_store_conformance!(opened(Database::sqlite()));

    mod queue {
        use crate::common::{Database, opened};
        use crate::queue;

        function_gateway_testkit::invocation_queue_conformance!(opened(Database::sqlite()));

        #[tokio::test(flavor = "multi_thread")]
        async fn several_processes_take_each_invocation_once() {
            queue::several_processes_take_each_invocation_once(Database::sqlite()).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn what_is_counted_is_what_there_is() {
            queue::what_is_counted_is_what_there_is(Database::sqlite()).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn clocks_that_jump_lose_nothing_and_repeat_nothing() {
            crate::outlived::clocks::clocks_that_jump(Database::sqlite()).await;
        }

        #[tokio::test]
        async fn a_take_finds_what_is_due_among_many_tenants_that_have_nothing() {
            queue::a_take_finds_what_is_due_among_many_tenants_that_have_nothing(Database::sqlite()).await;
        }
    }

    #[tokio::test]
    async fn a_row_that_cant_be_read_breaks_no_list() {
        faults::a_row_that_cant_be_read_breaks_no_list(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn several_processes_open_a_new_database_at_once() {
        migrations::several_processes_open_a_new_database_at_once(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn several_processes_bring_an_old_database_up_to_date_at_once() {
        migrations::several_processes_bring_an_old_database_up_to_date_at_once(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn tables_of_a_later_version_are_used_as_far_as_they_allow() {
        migrations::tables_of_a_later_version_are_used_as_far_as_they_allow(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn every_released_version_is_brought_up_to_date_with_its_data() {
        migrations::every_released_version_is_brought_up_to_date_with_its_data(async || Database::sqlite()).await;
    }

    #[tokio::test]
    async fn a_commit_is_seen_by_another_process_when_it_answers() {
        recording::a_commit_is_seen_by_another_process_when_it_answers(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn what_is_buffered_is_written_when_a_gateway_shuts_down() {
        recording::what_is_buffered_is_written_when_a_gateway_shuts_down(Database::sqlite()).await;
    }

    #[tokio::test]
    async fn a_full_buffer_makes_calls_wait_and_loses_nothing() {
        recording::a_full_buffer_makes_calls_wait_and_loses_nothing(Database::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn retention_lets_writers_have_their_turn() {
        recording::retention_lets_writers_have_their_turn(Database::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_several_processes_one_wins() {
        sharing::of_several_processes_one_wins(Database::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_function_is_changed_by_one_gateway_while_another_executes_it() {
        sharing::a_function_is_changed_by_one_gateway_while_another_executes_it(Database::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_recorder_that_is_killed_loses_nothing_that_it_acknowledged() {
        crashes::a_recorder_that_is_killed(Database::sqlite(), 5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "takes long: cargo xtask soak"]
    async fn soak_recorders_that_are_killed() {
        crashes::a_recorder_that_is_killed(Database::sqlite(), crashes::soak_count()).await;
    }
}

#[cfg(test)]
mod in_memory {
    use crate::common::in_memory;

    function_gateway_testkit::function_store_conformance!(in_memory());
    function_gateway_testkit::invocation_store_conformance!(in_memory());
    function_gateway_testkit::audit_log_conformance!(in_memory());
    function_gateway_testkit::api_key_store_conformance!(in_memory());
    function_gateway_testkit::document_store_conformance!(in_memory());

    mod queue {
        use crate::common::in_memory;

        function_gateway_testkit::invocation_queue_conformance!(in_memory());
    }
}

/// The same on a server.
macro_rules! on_server {
    ($module:ident, $database:expr, $needs:literal) => {
        mod $module {
            use crate::common::{Database, opened};
            use crate::{crashes, faults, migrations, outlived, recording, sharing};

            function_gateway_testkit::function_store_conformance!(
                #[ignore = $needs]
                opened($database.await)
            );
            function_gateway_testkit::invocation_store_conformance!(
                #[ignore = $needs]
                opened($database.await)
            );
            function_gateway_testkit::audit_log_conformance!(
                #[ignore = $needs]
                opened($database.await)
            );
            function_gateway_testkit::api_key_store_conformance!(
                #[ignore = $needs]
                opened($database.await)
            );
            function_gateway_testkit::document_store_conformance!(
                #[ignore = $needs]
                opened($database.await)
            );

            mod queue {
                use crate::common::{Database, opened};
                use crate::queue;

                function_gateway_testkit::invocation_queue_conformance!(
                    #[ignore = $needs]
                    opened($database.await)
                );

                #[tokio::test(flavor = "multi_thread")]
                #[ignore = $needs]
                async fn several_processes_take_each_invocation_once() {
                    queue::several_processes_take_each_invocation_once($database.await).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                #[ignore = $needs]
                async fn what_is_counted_is_what_there_is() {
                    queue::what_is_counted_is_what_there_is($database.await).await;
                }

                #[tokio::test]
                #[ignore = $needs]
                async fn a_take_finds_what_is_due_among_many_tenants_that_have_nothing() {
                    queue::a_take_finds_what_is_due_among_many_tenants_that_have_nothing($database.await).await;
                }
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn a_row_that_cant_be_read_breaks_no_list() {
                faults::a_row_that_cant_be_read_breaks_no_list($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn who_may_not_gets_an_error_without_the_password() {
                faults::who_may_not_gets_an_error_without_the_password($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn failures_of_the_database_are_typed_and_repeated_where_that_is_safe() {
                faults::failures_of_the_database_are_typed_and_repeated_where_that_is_safe($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn a_pool_that_is_exhausted_says_so_and_recovers() {
                faults::a_pool_that_is_exhausted_says_so_and_recovers($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn gateways_that_are_killed_lose_nothing_and_repeat_nothing() {
                outlived::killed::gateways_that_are_killed($database.await, 5).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn a_network_that_is_cut_loses_nothing_and_repeats_nothing() {
                outlived::network::a_network_that_is_cut($database.await, 5).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes long: cargo xtask soak"]
            async fn soak_a_network_that_is_cut() {
                outlived::network::a_network_that_is_cut($database.await, crashes::soak_count()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn clocks_that_jump_lose_nothing_and_repeat_nothing() {
                outlived::clocks::clocks_that_jump($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes long: cargo xtask soak"]
            async fn soak_gateways_that_are_killed() {
                outlived::killed::gateways_that_are_killed($database.await, 4 * crashes::soak_count()).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn several_processes_open_a_new_database_at_once() {
                migrations::several_processes_open_a_new_database_at_once($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn several_processes_bring_an_old_database_up_to_date_at_once() {
                migrations::several_processes_bring_an_old_database_up_to_date_at_once($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn tables_of_a_later_version_are_used_as_far_as_they_allow() {
                migrations::tables_of_a_later_version_are_used_as_far_as_they_allow($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn every_released_version_is_brought_up_to_date_with_its_data() {
                migrations::every_released_version_is_brought_up_to_date_with_its_data(async || $database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn a_commit_is_seen_by_another_process_when_it_answers() {
                recording::a_commit_is_seen_by_another_process_when_it_answers($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn what_is_buffered_is_written_when_a_gateway_shuts_down() {
                recording::what_is_buffered_is_written_when_a_gateway_shuts_down($database.await).await;
            }

            #[tokio::test]
            #[ignore = $needs]
            async fn a_full_buffer_makes_calls_wait_and_loses_nothing() {
                recording::a_full_buffer_makes_calls_wait_and_loses_nothing($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn retention_lets_writers_have_their_turn() {
                recording::retention_lets_writers_have_their_turn($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn of_several_processes_one_wins() {
                sharing::of_several_processes_one_wins($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn a_function_is_changed_by_one_gateway_while_another_executes_it() {
                sharing::a_function_is_changed_by_one_gateway_while_another_executes_it($database.await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = $needs]
            async fn a_recorder_that_is_killed_loses_nothing_that_it_acknowledged() {
                crashes::a_recorder_that_is_killed($database.await, 5).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes long: cargo xtask soak"]
            async fn soak_recorders_that_are_killed() {
                crashes::a_recorder_that_is_killed($database.await, crashes::soak_count()).await;
            }
        }
    };
}

#[cfg(test)]
mod on_server {
    use crate::common::Database;

    on_server!(postgres, Database::postgres(), "needs PostgreSQL: cargo xtask test");
    on_server!(mysql, Database::mysql(), "needs MariaDB: cargo xtask test");

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo xtask test"]
    async fn commits_are_on_the_disk_whatever_the_database_says() {
        crate::faults::commits_are_on_the_disk_whatever_the_database_says(Database::postgres().await).await;
    }

    #[tokio::test]
    #[ignore = "needs MariaDB: cargo xtask test"]
    async fn a_migration_that_broke_off_is_done_again() {
        crate::migrations::a_migration_that_broke_off_is_done_again(Database::mysql().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo xtask test"]
    async fn other_processes_are_told_of_the_queue() {
        crate::queue::other_processes_are_told(Database::postgres().await).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: cargo xtask test"]
    async fn a_long_queue_is_never_read_as_a_whole() {
        crate::queue::a_long_queue_is_never_read_as_a_whole(Database::postgres().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs PostgreSQL: cargo xtask test"]
    async fn a_server_that_is_killed_loses_nothing_and_is_used_again() {
        crate::crashes::a_server_that_is_killed(5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "takes long: cargo xtask soak"]
    async fn soak_servers_that_are_killed() {
        crate::crashes::a_server_that_is_killed(crate::crashes::soak_count()).await;
    }
}
