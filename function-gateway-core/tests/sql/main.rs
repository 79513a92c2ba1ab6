//! The SQL stores, each on its own database.

#[cfg(test)]
mod common;

#[cfg(test)]
mod on_sqlite {
    use crate::common::sqlite;

    function_gateway_testkit::function_store_conformance!(sqlite());
    function_gateway_testkit::invocation_store_conformance!(sqlite());
}

#[cfg(test)]
mod on_server {
    //! Servers are started by `cargo xtask test`, or named by the variables of `common`.

    mod postgres {
        use crate::common::postgres;

        function_gateway_testkit::function_store_conformance!(
            #[ignore = "needs PostgreSQL: cargo xtask test"]
            postgres()
        );
        function_gateway_testkit::invocation_store_conformance!(
            #[ignore = "needs PostgreSQL: cargo xtask test"]
            postgres()
        );
    }

    mod mysql {
        use crate::common::mysql;

        function_gateway_testkit::function_store_conformance!(
            #[ignore = "needs MariaDB: cargo xtask test"]
            mysql()
        );
        function_gateway_testkit::invocation_store_conformance!(
            #[ignore = "needs MariaDB: cargo xtask test"]
            mysql()
        );
    }
}
