s/write_timeout: 65s/write_timeout: 30s/
