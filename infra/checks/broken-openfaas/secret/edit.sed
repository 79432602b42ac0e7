/^      - cassandra-ca$/d
