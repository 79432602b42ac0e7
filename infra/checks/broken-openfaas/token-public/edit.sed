s#^      CASSANDRA_CA_FILE:.*#&\n      EVENT_TOKEN_FILE: /var/openfaas/secrets/event-token#
