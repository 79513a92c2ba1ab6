-- Executions of the same microsecond are few, and sorted when they are read. An entry without the id takes half the room.
DROP INDEX fg_invocations_by_time;
DROP INDEX fg_invocations_by_name;
DROP INDEX fg_invocations_by_function;
DROP INDEX fg_invocations_by_state;
DROP INDEX fg_invocations_by_class;
DROP INDEX fg_invocations_by_caller;
CREATE INDEX fg_invocations_by_time ON fg_invocations (tenant, created_at);
CREATE INDEX fg_invocations_by_name ON fg_invocations (tenant, name, created_at);
CREATE INDEX fg_invocations_by_function ON fg_invocations (function_id, created_at);
CREATE INDEX fg_invocations_by_state ON fg_invocations (tenant, state, created_at);
CREATE INDEX fg_invocations_by_class ON fg_invocations (tenant, class, created_at) WHERE class IS NOT NULL;
CREATE INDEX fg_invocations_by_caller ON fg_invocations (tenant, caller, created_at);
