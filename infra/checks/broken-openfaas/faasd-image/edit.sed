s#docker.io/##
