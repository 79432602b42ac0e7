0,/^      - lambda-ingest$/s//&\n      - lambda-store/
