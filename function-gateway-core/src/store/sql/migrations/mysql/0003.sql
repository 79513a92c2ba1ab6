CREATE TABLE IF NOT EXISTS fg_submissions (
    id               VARBINARY(36) NOT NULL PRIMARY KEY,
    tenant           VARBINARY(64) NOT NULL,
    name             VARBINARY(63) NOT NULL,
    function_id      VARBINARY(36) NOT NULL,
    pinned           BIGINT,
    state            VARBINARY(32) NOT NULL,
    due_at           BIGINT,
    epoch            BIGINT NOT NULL,
    attempts         BIGINT NOT NULL,
    repeatable       BIGINT NOT NULL,
    cancel_requested BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    ended_at         BIGINT,
    dead_at          BIGINT,
    expires_at       BIGINT,
    idem_key         VARBINARY(255),
    format           BIGINT NOT NULL,
    document         LONGTEXT NOT NULL,
    progress         LONGTEXT NOT NULL,
    payload          LONGBLOB NOT NULL,
    result           LONGBLOB,
    INDEX fg_submissions_due (tenant, due_at, id),
    UNIQUE INDEX fg_submissions_by_key (tenant, name, idem_key),
    INDEX fg_submissions_dead (tenant, dead_at, id),
    INDEX fg_submissions_dead_by_name (tenant, name, dead_at, id),
    INDEX fg_submissions_expiring (expires_at),
    INDEX fg_submissions_pinned (function_id, pinned)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_queue_depth (
    tenant      VARBINARY(64) NOT NULL,
    name        VARBINARY(63) NOT NULL,
    open        BIGINT NOT NULL,
    dead        BIGINT NOT NULL,
    pinned      BIGINT NOT NULL,
    next_due_at BIGINT,
    PRIMARY KEY (tenant, name),
    INDEX fg_queue_depth_due (next_due_at, tenant)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_commits (
    writer VARBINARY(36) NOT NULL PRIMARY KEY,
    batch  BIGINT NOT NULL,
    at     BIGINT NOT NULL
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_documents (
    tenant  VARBINARY(64) NOT NULL,
    kind    VARBINARY(64) NOT NULL,
    name    VARBINARY(255) NOT NULL,
    version BIGINT NOT NULL,
    format  BIGINT NOT NULL,
    content LONGBLOB NOT NULL,
    PRIMARY KEY (tenant, kind, name)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;
