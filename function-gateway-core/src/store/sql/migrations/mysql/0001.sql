CREATE TABLE IF NOT EXISTS fg_functions (
    seq          BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    tenant       VARBINARY(64) NOT NULL,
    name         VARBINARY(63) NOT NULL,
    id           VARBINARY(36) NOT NULL UNIQUE,
    owner        VARBINARY(256) NOT NULL,
    driver       VARBINARY(63) NOT NULL,
    phase        VARBINARY(32) NOT NULL,
    generation   BIGINT NOT NULL,
    version      BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    reconcile_at BIGINT,
    lease_epoch  BIGINT NOT NULL DEFAULT 0,
    lease_from   BIGINT,
    lease_until  BIGINT,
    format       BIGINT NOT NULL,
    spec         LONGTEXT NOT NULL,
    status       LONGTEXT NOT NULL,
    UNIQUE (tenant, name),
    INDEX fg_functions_by_owner (tenant, owner, name),
    INDEX fg_functions_by_driver (tenant, driver, name),
    INDEX fg_functions_by_phase (tenant, phase, name),
    INDEX fg_functions_due (reconcile_at, tenant, name)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_function_labels (
    tenant      VARBINARY(64) NOT NULL,
    label_key   VARBINARY(255) NOT NULL,
    label_value VARBINARY(1024) NOT NULL,
    name        VARBINARY(63) NOT NULL,
    seq         BIGINT NOT NULL,
    PRIMARY KEY (tenant, label_key, label_value, name),
    INDEX fg_function_labels_by_name (tenant, name)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_revisions (
    function_id VARBINARY(36) NOT NULL,
    generation  BIGINT NOT NULL,
    tenant      VARBINARY(64) NOT NULL,
    format      BIGINT NOT NULL,
    document    LONGTEXT NOT NULL,
    PRIMARY KEY (function_id, generation)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_invocations (
    id          VARBINARY(36) NOT NULL PRIMARY KEY,
    tenant      VARBINARY(64) NOT NULL,
    name        VARBINARY(63) NOT NULL,
    function_id VARBINARY(36) NOT NULL,
    state       VARBINARY(32) NOT NULL,
    class       VARBINARY(32),
    caller      VARBINARY(256) NOT NULL,
    created_at  BIGINT NOT NULL,
    finished_at BIGINT,
    format      BIGINT NOT NULL,
    document    LONGTEXT NOT NULL,
    payload     LONGBLOB,
    result      LONGBLOB,
    logs        LONGBLOB,
    INDEX fg_invocations_by_time (tenant, created_at, id),
    INDEX fg_invocations_by_name (tenant, name, created_at, id),
    INDEX fg_invocations_by_function (function_id, created_at, id),
    INDEX fg_invocations_by_state (tenant, state, created_at, id),
    INDEX fg_invocations_by_class (tenant, class, created_at, id),
    INDEX fg_invocations_by_caller (tenant, caller, created_at, id),
    INDEX fg_invocations_ended (finished_at)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_invocation_labels (
    id          VARBINARY(36) NOT NULL,
    label_key   VARBINARY(255) NOT NULL,
    label_value VARBINARY(1024) NOT NULL,
    tenant      VARBINARY(64) NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (id, label_key),
    INDEX fg_invocation_labels_by_time (tenant, label_key, label_value, created_at, id)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_rollups (
    id       VARBINARY(200) NOT NULL PRIMARY KEY,
    tenant   VARBINARY(64) NOT NULL,
    name     VARBINARY(63) NOT NULL,
    minute   BIGINT NOT NULL,
    format   BIGINT NOT NULL,
    document LONGTEXT NOT NULL,
    INDEX fg_rollups_by_name (tenant, name, minute),
    INDEX fg_rollups_by_minute (tenant, minute)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;
