-- Every statement can run again: the server commits each table by itself, so a migration can be cut short.
-- Names are compared and counted by characters, never by what looks alike: utf8mb4 and its binary collation.
CREATE TABLE IF NOT EXISTS users (
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id BINARY(16) NOT NULL UNIQUE,
    name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    stored_at BIGINT NOT NULL,
    stored_by BINARY(16) NOT NULL
);

-- Users that the batch views do not hold yet. A lower seq may commit later than a higher one, so that no single
-- number could say which they are.
CREATE TABLE IF NOT EXISTS batch_pending (
    seq BIGINT NOT NULL PRIMARY KEY
);

CREATE TABLE IF NOT EXISTS batch (
    only_row TINYINT NOT NULL PRIMARY KEY,
    users BIGINT NOT NULL,
    longest_seq BIGINT NULL
);

INSERT IGNORE INTO batch VALUES (1, 0, NULL);

CREATE TABLE IF NOT EXISTS batch_minutes (
    minute BIGINT NOT NULL PRIMARY KEY,
    time BIGINT NOT NULL,
    user_count BIGINT NOT NULL,
    KEY batch_minutes_by_count (user_count),
    KEY batch_minutes_by_time (time, user_count)
);
