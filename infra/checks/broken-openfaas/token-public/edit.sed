s#^      CONFIG_FILE:.*lambda-ingest#&\n      EVENT_TOKEN_FILE: /var/openfaas/secrets/event-token#
